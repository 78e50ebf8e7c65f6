"""A claim that is a race: what the comparison is asked, and what its answer says of the claim."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

from thalweg import catalog
from thalweg.arena import ledger, race
from thalweg.errors import ArenaError

FINAL = {"adamw+cosine": [2.0, 2.1], "adamw+wsd": [1.9, 2.0]}


def run(seed: int, final: float) -> dict:
    curve = {"steps": [10, 20], "tokens": [1, 2], "seconds": [0.5, 1.0], "bits_per_byte": [final + 1, final]}
    return {
        "seed": seed, "status": "finished", "error": None, "run": "runs/compared/abc", "reused": False,
        "bits_per_byte": final, "seconds": 30.25, "skipped": 0, "curve": curve,
    }  # fmt: skip


def results(verdict: str, final: dict = FINAL) -> dict:
    """What `compare` gives for two arms and two seeds, as the arena's results.json has it."""
    arms = []
    for name, values in final.items():
        first = not arms
        arms.append(
            {
                "name": name, "arm": f"{name}+cross_entropy", "peak_lr": 0.007, "weight_decay": 0.1,
                "runs": [run(seed, value) for seed, value in enumerate(values)],
                "bits_per_byte": {"mean": sum(values) / 2, "low": 1.0, "high": 3.0, "sd": 0.07, "n": 2},
                "difference": None if first else {
                    "mean": -0.1, "low": -0.12, "high": -0.08, "relative": -0.05,
                    "p_t": 0.01, "p_permutation": 0.5, "p_holm": 0.02, "n": 2,
                },
                "verdict": "baseline" if first else verdict,
                "explanation": "" if first else "lower by 0.100 (0.080 to 0.120)",
                "more_seeds": None,
                "speedup": None if first else {"steps": 1.25, "tokens": 1.25, "seconds": None},
                "overhead": None if first else 0.01,
                "skipped": 0, "failures": 0,
                "noise": {"seed_sd": 0.07, "monotonicity": 1.0, "signal_to_noise": None},
            }
        )  # fmt: skip
    workload = {
        "name": "model=1M,corpus=stdlib", "model": "1M", "corpus": "stdlib", "budget": "20 steps",
        "setting": {"context": 64}, "arms": arms,
    }  # fmt: skip
    return {
        "schema": 1, "seeds": [0, 1], "margin": 0.002, "tuning": None, "workloads": [workload],
        "machine": {"processor": "a machine"}, "versions": {"thalweg": "0.1.0"},
    }  # fmt: skip


@pytest.fixture
def compared(monkeypatch):
    """A comparison that takes no time: set `verdict`, or `error`; sees what it was called with."""
    fake = SimpleNamespace(verdict="better", error=None, calls=[])

    def compare(arms, **told):
        fake.calls.append((arms, told))
        if fake.error is not None:
            raise fake.error
        return SimpleNamespace(results=results(fake.verdict))

    monkeypatch.setattr("thalweg.arena.compare.compare", compare)
    return fake


@pytest.mark.parametrize(
    ("expect", "verdict", "says"),
    [
        ("better", "better", "holds here"),
        ("better", "worse", "does not hold here"),
        ("better", "tied", "does not hold here"),
        ("worse", "worse", "holds here"),
        ("worse", "better", "does not hold here"),
        ("worse", "tied", "does not hold here"),
        ("tied", "tied", "holds here"),
        ("tied", "better", "does not hold here"),
        ("tied", "worse", "does not hold here"),
        ("better", "undecided", "undecided"),
        ("worse", "undecided", "undecided"),
        ("tied", "undecided", "undecided"),
    ],
)
def test_verdict_on_the_claim(expect, verdict, says):
    assert race.judge(expect, verdict) == says


def test_the_record_of_a_race(tmp_path, compared):
    [outcome] = ledger.run_claims(["wsd"], tmp_path, quiet=True)
    card = catalog.lookup("wsd")
    arms, told = compared.calls[0]
    assert arms == card.claim["arms"]
    assert told["budget"] == card.claim["budget"]
    assert told["seeds"] == 3
    assert told["out"].as_posix() == "runs/claims/wsd"
    assert told["quiet"] is True
    assert outcome.path == tmp_path / "wsd.json"
    record = json.loads(outcome.path.read_text())
    assert record["paper_claim"] == card.paper_claim
    assert (record["schema"], record["name"], record["family"]) == (1, "wsd", "schedules")
    assert (record["title"], record["arxiv"], record["year"]) == (card.title, card.arxiv, card.year)
    [entry] = record["history"]
    assert entry["verdict"] == "does not hold here"  # the card expects a tie
    assert entry["sentence"] == (
        "adamw+wsd against adamw+cosine, held-out bits per byte: lower by 0.100 (0.080 to 0.120)."
    )
    assert entry["interval"] == [-0.12, -0.08]
    assert entry["numbers"]["difference"] == -0.1
    assert entry["numbers"]["p_holm"] == 0.02
    assert entry["numbers"]["speedup_steps"] == 1.25
    assert entry["seconds"] == pytest.approx(4 * 30.25)
    assert entry["seeds"] == [0, 1]
    assert entry["machine"] == {"processor": "a machine"}
    assert [arm["seeds"] for arm in entry["arms"]] == [{"0": 2.0, "1": 2.1}, {"0": 1.9, "1": 2.0}]
    curve = entry["curves"][0]
    assert curve["steps"] == [10, 20]
    assert curve["mean"] == pytest.approx([3.05, 2.05])
    assert (curve["low"], curve["high"]) == ([3.0, 2.0], [3.1, 2.1])
    assert "runs/compared" not in outcome.path.read_text()


def test_curves_of_runs_with_different_evaluations_and_a_failed_run():
    arm = {"name": "a", "runs": [run(0, 1.0), run(1, 2.0), {**run(2, 9.0), "status": "failed"}]}
    arm["runs"][1]["curve"] = {"steps": [12, 22, 30], "bits_per_byte": [3.0, None, 2.0]}
    curve = race.mean_curve(arm)
    assert curve == {"arm": "a", "steps": [11.0], "mean": [2.5], "low": [2.0], "high": [3.0]}
    assert race.mean_curve({"name": "a", "runs": []}) is None


def test_failed_runs_give_no_verdict():
    told = results("failed")
    told["workloads"][0]["arms"][1] |= {"bits_per_byte": None, "difference": None}
    told["workloads"][0]["arms"][1] |= {"explanation": "seed 0: the loss was not finite"}
    with pytest.raises(ArenaError, match=r"adamw\+wsd failed: seed 0: the loss was not finite"):
        race.entry(catalog.lookup("wsd"), told)


def test_one_seed_has_no_interval():
    told = results("undecided")
    told["workloads"][0]["arms"][1]["difference"] = dict.fromkeys(("low", "high", "p_t", "p_permutation", "p_holm"))
    told["workloads"][0]["arms"][1]["difference"] |= {"mean": -0.1, "relative": -0.05, "n": 1}
    assert race.entry(catalog.lookup("wsd"), told)["interval"] == [None, None]


def test_methods_of_a_claim_include_defaults():
    assert race.methods_of(catalog.lookup("wsd")) == ["adamw", "cosine", "cross_entropy", "wsd"]
    assert race.methods_of(catalog.lookup("gradient_noise")) == ["adamw", "cross_entropy", "gradient_noise", "linear"]
    assert race.methods_of(catalog.lookup("cross_entropy")) == ["cross_entropy"]


# -- the whole way ------------------------------------------------------------------------------------------------


def test_a_real_claim(tmp_path, monkeypatch, corpus):
    """Really trained: a tiny model, 20 steps, two arms that differ; the second time nothing is trained again."""
    monkeypatch.chdir(tmp_path)
    claim = {
        "arms": ["adamw+constant", "adamw+linear"],
        "budget": "20 steps",
        "seeds": 2,
        "expect": "better",
        "model": "0.2M",
        "corpus": str(corpus),
        "settings": {
            "data.tokenizer": "bpe:512", "data.context": 32, "data.held_out": 0.1,
            "training.batch_size": 8, "training.peak_lr": 0.005,
        },
    }  # fmt: skip
    card = dataclasses.replace(catalog.lookup("linear"), claim=claim)
    cards = {**catalog.load(), "linear": card}
    monkeypatch.setattr(catalog, "load", lambda: cards)
    outcomes = [ledger.run_claims(["linear"], "results", quiet=True, jobs=1)[0] for _ in range(2)]
    assert [outcome.error for outcome in outcomes] == [None, None]
    first, second = ledger.read("results")["linear"]["history"]
    told = json.loads((tmp_path / "runs" / "claims" / "linear" / "results.json").read_text())
    method = told["workloads"][0]["arms"][1]
    assert first["verdict"] == race.judge("better", method["verdict"])
    assert first["numbers"]["difference"] == method["difference"]["mean"] != 0
    assert 0 < first["numbers"]["bits_per_byte"] < 9
    assert first["curves"][0]["steps"][-1] == 20
    assert first["arms"][0]["peak_lr"] == 0.005
    assert all(run["reused"] for arm in told["workloads"][0]["arms"] for run in arm["runs"])
    assert second["numbers"] == first["numbers"]
    assert second["hash"] == first["hash"]
