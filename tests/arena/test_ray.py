"""Units on a real Ray of two workers on this machine, one of which is killed in the middle of a run."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from thalweg.arena.measured import Outcome, run_of
from thalweg.arena.unit import perform
from thalweg.arena.workload import Workload
from thalweg.errors import ArenaError

ray = pytest.importorskip("ray", reason="the ray extra is not installed")


@pytest.fixture
def cluster(monkeypatch):
    from thalweg.arena.ray import OnRay

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    made = OnRay(None)
    yield made
    made.close()
    assert not ray.is_initialized()


def test_units_and_a_worker_that_dies(cluster, workload):
    longer = Workload(workload.model, workload.corpus, "300 steps", workload.settings, workload.root)
    longer.prepare("adamw+linear")
    units = [longer.unit("adamw+linear", seed).on(1, "") for seed in (0, 1)]
    cluster.prepare(units)
    assert (cluster.slots, cluster.threads) == (2, 1)
    answers = [cluster.submit(unit) for unit in units]
    deadline = time.monotonic() + 90
    locks: list[Path] = []
    while not locks:
        assert time.monotonic() < deadline
        found = Path(tempfile.gettempdir()).glob(f"thalweg-*/{units[0].key}/metrics.jsonl")
        locks = [path.parent / ".lock" for path in found if path.read_text().count("\n") > 20]
        time.sleep(0.02)
    os.kill(int(locks[0].read_text()), signal.SIGKILL)
    runs = [
        run_of(Outcome(unit, answer.result(120), reused=False)) for unit, answer in zip(units, answers, strict=True)
    ]
    assert [run["error"] for run in runs] == [None, None]
    assert [run["steps"] for run in runs] == [300, 300]
    # What came back is what a run here gives.
    here = longer.unit("adamw+linear", 0).on(1, "")
    lines = (here.folder / "metrics.jsonl").read_text()
    (here.folder / "metrics.jsonl").unlink()
    (here.folder / "recipe.toml").unlink()
    perform(here)
    assert run_of(Outcome(here, {"status": "finished"}, reused=False))["bits_per_byte"] == runs[0]["bits_per_byte"]
    assert lines.count('"event": "finish"') == 1


def test_closing_leaves_nobody_waiting(cluster, workload):
    longer = Workload(workload.model, workload.corpus, "100000 steps", workload.settings, workload.root)
    longer.prepare("adamw+linear")
    unit = longer.unit("adamw+linear", 0).on(1, "")
    cluster.prepare([unit])
    answer = cluster.submit(unit)
    cluster.close()
    assert answer.result(5) == {"status": "interrupted"}
    assert unit.state() == "new"


def test_no_cluster():
    from thalweg.arena.ray import OnRay

    with pytest.raises(ArenaError, match="cluster"):
        OnRay("auto")
