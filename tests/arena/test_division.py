"""Which division of the machine is chosen, from speeds made up by hand."""

from __future__ import annotations

from typing import Any

import pytest

from thalweg.arena.division import divide, divisions, probe
from thalweg.arena.workload import Workload

JOB = {"recipe": "", "chosen": {"model": "1M", "context": 256, "batch_size": 8}}


def test_what_is_tried():
    assert divisions(1, 10) == [(1, 1)]
    assert divisions(2, 10) == [(1, 2), (2, 1)]
    assert divisions(8, 3) == [(1, 8), (2, 4), (3, 2), (3, 1)]


@pytest.mark.parametrize(
    ("speeds", "slots", "threads", "words"),
    [({2: 150.0, 1: 100.0}, 2, 1, "1.33 times"), ({2: 250.0, 1: 100.0}, 1, 2, "1.25 times")],
)
def test_the_faster_division_is_taken_and_remembered(tmp_path, speeds, slots, threads, words):
    asked: list[tuple[int, int]] = []

    def ask(job: dict[str, Any], slot: int) -> dict[str, Any]:
        asked.append((job["threads"], slot))
        return {"tokens_per_second": speeds[job["threads"]], "peak_memory": 1.0}

    found = divide(2, 6, JOB, ask, tmp_path)
    assert (found.slots, found.threads) == (slots, threads)
    assert words in found.reason
    assert sorted(asked) == [(1, 0), (1, 1), (2, 0)]
    asked.clear()
    assert divide(2, 6, JOB, ask, tmp_path) == found
    assert asked == []


def test_what_does_not_fit_into_memory_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg.arena.division.available_memory", lambda: 100)
    asked = []

    def ask(job: dict[str, Any], slot: int) -> dict[str, Any]:
        asked.append(job["threads"])
        return {"tokens_per_second": 1.0, "peak_memory": 60.0}

    assert divide(2, 6, JOB, ask, tmp_path).slots == 1
    assert asked == [2]


def test_a_failed_probe_counts_as_no_speed(tmp_path):
    def ask(job: dict[str, Any], slot: int) -> dict[str, Any]:
        return {"tokens_per_second": 5.0} if job["threads"] == 2 else {"status": "failed", "error": "no"}

    assert divide(2, 6, JOB, ask, tmp_path).slots == 1


def test_a_probe_trains(workload: Workload):
    unit = workload.unit("muon+linear", 0)
    found = probe(unit.recipe.toml(), unit.plan["chosen"], threads=1, seconds=0.05)
    assert found["tokens_per_second"] > 100
    assert found["peak_memory"] > 1e8
