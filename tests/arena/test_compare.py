"""Whole comparisons of a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import thalweg
from thalweg.arena.comparison import Comparison
from thalweg.errors import ArenaError, RecipeError, RunError


def test_an_arm_under_another_name_is_tied(meet, tmp_path):
    """beta1=0.9 is the default: the runs are others, the arithmetic is the same."""
    found = meet("adamw+linear", "adamw:beta1=0.9+linear", "muon+linear")
    arms = found.results["workloads"][0]["arms"]
    assert [arm["name"] for arm in arms] == ["adamw+linear", "adamw:beta1=0.9+linear", "muon+linear"]
    same = arms[1]
    assert same["runs"][0]["run"] != arms[0]["runs"][0]["run"]
    assert same["difference"]["mean"] == 0.0
    assert same["verdict"] == "tied"
    assert arms[2]["verdict"] in ("better", "undecided")
    assert found.verdicts()["adamw+linear"] == "baseline"
    assert [run["reused"] for run in arms[0]["runs"]] == [False, False]
    # The same comparison again: everything is found; another with a common arm finds that arm.
    again = meet("adamw+linear", "muon+linear", seeds=3, out=tmp_path / "again")
    reused = [[run["reused"] for run in arm["runs"]] for arm in again.results["workloads"][0]["arms"]]
    assert reused == [[True, True, False], [True, True, False]]
    first, second = (made.arm("muon+linear")["runs"][0] for made in (found, again))
    assert {**first, "reused": None} == {**second, "reused": None}
    assert Comparison.read(tmp_path / "again").results == again.results
    for name in ("results.json", "table.md", "report.html"):
        assert (tmp_path / "again" / name).stat().st_size > 500
    assert "muon+linear" in again.table()
    assert "muon+linear" in again._repr_html_()
    assert again.plot().axes


def test_arms_begin_with_the_same_weights_and_see_the_same_data(meet):
    """With a rate that is almost nothing the arms stay where they began: at the same loss."""
    found = meet("adamw+linear", "muon+cosine", seeds=1, settings=None, budget="3 steps")
    paths = [arm["runs"][0]["run"] for arm in found.results["workloads"][0]["arms"]]
    first = [json.loads(Path(path, "metrics.jsonl").read_text().splitlines()[0]) for path in paths]
    assert first[0]["loss"] == first[1]["loss"]


def test_tuned_arms_show_space_trials_and_winner(meet):
    found = meet("adamw+linear", "adamw+wsd", seeds=2, tune=3)
    for arm in found.results["workloads"][0]["arms"]:
        assert len(arm["trials"]) == 3
        best = min(arm["trials"], key=lambda trial: trial["bits_per_byte"])
        assert arm["winner"] == best["number"]
        assert arm["peak_lr"] == best["values"]["peak_lr"]
        recipe = thalweg.Recipe.read(Path(arm["runs"][0]["run"]) / "recipe.toml")
        assert recipe.training.peak_lr == best["values"]["peak_lr"]
        assert recipe.data.evaluate_on == "reporting"
        assert thalweg.Recipe.read(Path(best["run"]) / "recipe.toml").data.evaluate_on == "tuning"
    assert found.results["tuning"] == {"trials": 3, "sampler": "qmc", "seeds": [1000000]}
    decay = found.arm("adamw+wsd")["trials"][found.arm("adamw+wsd")["winner"]]["values"]["wsd:decay"]
    assert f"decay={decay!r}" in found.arm("adamw+wsd")["arm"]


def test_several_workloads_get_scores(meet, corpus):
    texts = [f"model=0.2M,corpus={corpus}", f"model=0.35M,corpus={corpus},budget=8 steps"]
    found = meet("adamw+linear", "muon+linear", seeds=1, workloads=texts)
    assert [workload["budget"] for workload in found.results["workloads"]] == ["12 steps", "8 steps"]
    scores = found.results["profile"]["scores"]
    assert set(scores) == {"adamw+linear", "muon+linear"}
    assert all(0 <= score <= 1 for score in scores.values())
    assert max(scores.values()) > 0


def test_an_arm_that_cannot_go_on_does_not_end_the_others(meet, monkeypatch):
    from thalweg.arena.local import Local

    submit = Local.submit

    def refuse(self, unit):  # type: ignore[no-untyped-def]
        if "muon" in unit.recipe.arm and unit.recipe.seed == 1:
            from concurrent.futures import Future

            failed: Future[dict[str, str]] = Future()
            failed.set_result({"status": "failed", "error": "the process was ended by signal 9"})
            return failed
        return submit(self, unit)

    monkeypatch.setattr(Local, "submit", refuse)
    found = meet("adamw+linear", "muon+linear", "adamw+cosine")
    verdicts = found.verdicts()
    assert verdicts["muon+linear"] == "failed"
    assert verdicts["adamw+cosine"] != "failed"
    assert found.arm("muon+linear")["explanation"] == "seed 1: the process was ended by signal 9"
    assert "signal 9" in (found.folder / "table.md").read_text()


def test_a_time_budget_warns(meet):
    found = meet("adamw+linear", "muon+linear", seeds=1, budget="4s")
    assert any("seconds" in warning for warning in found.results["warnings"])
    assert all(arm["runs"][0]["status"] == "finished" for arm in found.results["workloads"][0]["arms"])


@pytest.mark.parametrize(
    ("arms", "options", "kind", "words"),
    [
        (["adamw"], {}, ArenaError, "two arms"),
        (["adamw", "adamw"], {}, ArenaError, "named twice"),
        (["adamw", "muonn"], {}, RecipeError, "muon"),
        (["adamw", "muon"], {"seeds": 0}, ArenaError, "seeds"),
        (["adamw", "muon"], {"sampler": "grid"}, ArenaError, "sampler"),
        (["adamw", "muon"], {"on": "moon"}, ArenaError, "moon"),
        (["adamw", "muon"], {"margin": -1.0}, ArenaError, "negative"),
        (["adamw", "muon"], {"workloads": ["size=3"]}, ArenaError, "size"),
    ],
)
def test_mistakes(meet, arms, options, kind, words):
    with pytest.raises(kind, match=words):
        meet(*arms, **options)


def test_reading_what_is_no_comparison(tmp_path):
    with pytest.raises(RunError):
        Comparison.read(tmp_path)
    (tmp_path / "results.json").write_text('{"schema": 99}')
    with pytest.raises(ArenaError, match="version"):
        Comparison.read(tmp_path)


def test_ctrl_c_loses_nothing(corpus, tmp_path):
    """As a user types it: stopped in the middle, the same command finishes with the results of one that was not."""
    settings = ["data.tokenizer=bpe:512", "data.context=32", "data.held_out=0.1", "training.batch_size=8"]
    said = ["--model", "0.2M", "--corpus", str(corpus), "--budget", "150 steps", "--seeds", "2", "--jobs", "1"]
    said += [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "thalweg", "compare", "adamw+linear", "muon+linear", *said, "--out", "result"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A shell that runs the tests in the background has SIGINT ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    stopped = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    runs = tmp_path / "runs" / "compared"
    end = time.monotonic() + 90
    while sum('"finish"' in path.read_text() for path in runs.glob("*/metrics.jsonl")) < 1:
        assert time.monotonic() < end
        assert stopped.poll() is None
        time.sleep(0.05)
    stopped.send_signal(signal.SIGINT)
    output, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert "goes on from here" in output
    finished = {path.parent.name for path in runs.glob("*/metrics.jsonl") if '"finish"' in path.read_text()}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    results = Comparison.read(tmp_path / "result").results
    every = [run for arm in results["workloads"][0]["arms"] for run in arm["runs"]]
    assert {Path(run["run"]).name for run in every if run["reused"]} == finished
    assert [run["steps"] for run in every] == [150] * 4
    assert "muon+linear" in done.stdout
