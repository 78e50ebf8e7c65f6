"""The ledger keeps what was measured, whatever it says, and knows when it is out of date."""

from __future__ import annotations

import math
import shutil
from types import SimpleNamespace

import pytest

from thalweg import catalog
from thalweg.arena import ledger
from thalweg.arena.claims.finding import Finding
from thalweg.errors import ArenaError, RecipeError, RunError, TrainingError


@pytest.fixture
def raced(monkeypatch):
    """Races that take no time: set `verdict`, or `error`; counts them."""
    fake = SimpleNamespace(verdict="holds here", error=None, calls=0)

    def race(card, **execution):
        fake.calls += 1
        if fake.error is not None:
            raise fake.error
        return {"verdict": fake.verdict, "sentence": "So it is.", "arms": [{"name": "adamw+wsd"}], "seconds": 1.0}

    monkeypatch.setattr(ledger, "race", race)
    return fake


@pytest.fixture
def found(monkeypatch):
    """Claims that name a function find this."""
    finding = Finding({"error": 1e-9, "worst": math.inf, "parts": [1.0, math.nan]}, True, "All is well.")
    monkeypatch.setattr(ledger, "find", lambda function: lambda: finding)
    return finding


def test_history_is_never_lost(tmp_path, raced):
    for verdict in ("holds here", "undecided", "does not hold here"):
        raced.verdict = verdict
        ledger.run_claims(["wsd"], tmp_path)
    history = ledger.read(tmp_path)["wsd"]["history"]
    assert [entry["verdict"] for entry in history] == ["holds here", "undecided", "does not hold here"]
    assert [path.name for path in tmp_path.iterdir()] == ["wsd.json"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 1, "history": []}', '{"schema": 2, "history": [{"hash": "x"}]}']
)
def test_a_damaged_record_is_not_overwritten_and_costs_no_measurement(tmp_path, raced, text):
    (tmp_path / "wsd.json").write_text(text)
    [outcome] = ledger.run_claims(["wsd"], tmp_path)
    assert isinstance(outcome.error, ArenaError | RunError)
    assert (tmp_path / "wsd.json").read_text() == text
    assert raced.calls == 0
    assert ledger.is_stale("wsd", tmp_path)
    with pytest.raises((ArenaError, RunError)):
        ledger.read(tmp_path)


def test_a_function_and_numbers_that_are_not_finite(tmp_path, found):
    [outcome] = ledger.run_claims(["cross_entropy"], tmp_path)
    entry = ledger.read(tmp_path)["cross_entropy"]["history"][0]
    assert entry == outcome.entry
    assert entry["verdict"] == "holds here"
    assert entry["numbers"] == {"error": 1e-9, "worst": None, "parts": [1.0, None]}
    assert entry["machine"]["cores"] >= 1
    assert entry["versions"]["thalweg"]
    assert (entry["arms"], entry["interval"]) == ([], None)


@pytest.mark.parametrize(("holds", "says"), [(True, "holds here"), (False, "does not hold here"), (None, "undecided")])
def test_what_a_finding_becomes(monkeypatch, holds, says):
    monkeypatch.setattr(ledger, "find", lambda function: lambda: Finding({}, holds, "So it is."))
    assert ledger.measure(catalog.lookup("cross_entropy"))["verdict"] == says


def test_a_claim_that_cannot_be_tested_does_not_end_the_others(tmp_path, raced, found):
    raced.error = TrainingError("it diverged")
    seen: list[str] = []
    outcomes = ledger.run_claims(
        ["wsd", "cross_entropy", "wsd"], tmp_path,
        begin=lambda card: seen.append(f"begin {card.name}"), done=lambda outcome: seen.append(f"done {outcome.name}"),
    )  # fmt: skip
    assert seen == ["begin wsd", "done wsd", "begin cross_entropy", "done cross_entropy"]
    assert [(outcome.path is None, outcome.error is None) for outcome in outcomes] == [(True, False), (False, True)]
    assert not (tmp_path / "wsd.json").exists()


def test_an_interruption_keeps_what_is_written(tmp_path, raced, found):
    raced.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        ledger.run_claims(["cross_entropy", "wsd"], tmp_path)
    assert list(ledger.read(tmp_path)) == ["cross_entropy"]


def test_unknown_names_and_folders_that_cannot_be(tmp_path):
    with pytest.raises(RecipeError, match="no method"):
        ledger.run_claims(["wds"], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make the output folder"):
        ledger.run_claims(["wsd"], tmp_path / "file")


# -- staleness ----------------------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A copy of the package's sources that a test may change."""
    from thalweg.arena import sources

    package = tmp_path / "thalweg"
    shutil.copytree(sources.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(catalog, "METHODS", package / "methods")
    monkeypatch.setattr(sources, "PACKAGE", package)
    monkeypatch.setattr("thalweg.arena.claims.finding.FOLDER", package / "arena" / "claims")
    return package


@pytest.mark.parametrize(
    ("name", "changed", "old", "stale"),
    [
        ("wsd", "methods/schedules/wsd.py", "", True),
        ("wsd", "methods/schedules/cosine.py", "", True),  # the baseline
        ("wsd", "methods/schedules/base.py", "", True),  # what the family shares
        ("wsd", "methods/optimizers/adamw.py", "", True),
        ("wsd", "methods/objectives/cross_entropy.py", "", True),  # in every arm that names no other
        ("wsd", "methods/schedules/linear.py", "", False),
        ("wsd", "methods/optimizers/muon.py", "", False),
        ("wsd", "methods/schedules/cards.toml", "Keep the peak on", True),  # its own card, whole
        ("wsd", "methods/schedules/cards.toml", "SGDR", False),  # of another card only what trains
        ("wsd", "methods/optimizers/cards.toml", "peak_lr = 0.007", True),
        ("wsd", "methods/optimizers/cards.toml", "peak_lr = 0.0175", False),
        ("cross_entropy", "arena/claims/cross_entropy_exact.py", "", True),
        ("cross_entropy", "arena/claims/finding.py", "", True),  # what claims share
        ("cross_entropy", "arena/claims/nuclear_norm_invisible.py", "", False),
        ("cross_entropy", "methods/objectives/linear_cross_entropy.py", "", True),
        ("cross_entropy", "methods/optimizers/adamw.py", "", False),
        ("cross_entropy", "training/trainer.py", "", True),
        ("cross_entropy", "models/coalescing.py", "", False),  # no run goes through it, nor does the function
        ("wsd", "training/trainer.py", "", False),
    ],
)
def test_stale_is_what_has_changed_since(tmp_path, house, raced, found, name, changed, old, stale):
    out = tmp_path / "results"
    assert ledger.is_stale(name, out)
    ledger.run_claims([name], out)
    assert not ledger.is_stale(name, out)
    path = house / changed
    text = path.read_text()
    assert old in text
    # One digit more where something is named, a comment at the end where not.
    path.write_text(text.replace(old, f"{old}7", 1) if old else f"{text}\n# changed\n")
    assert path.read_text() != text
    assert ledger.is_stale(name, out) is stale


def test_hash_names_its_parts(raced, tmp_path):
    [outcome] = ledger.run_claims(["wsd"], tmp_path)
    hashes = ledger.hashes(catalog.lookup("wsd"))
    assert outcome.entry["source"] == {"card": hashes["card"], "code": hashes["code"]}
    assert outcome.entry["hash"] == hashes["both"]
    assert len({*hashes.values()}) == 3
