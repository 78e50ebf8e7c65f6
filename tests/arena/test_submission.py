"""Units handed in to an execution that a test answers for."""

from __future__ import annotations

import platform
from concurrent.futures import CancelledError, Future

import pytest

from thalweg.arena.submission import submitting
from thalweg.arena.unit import perform
from thalweg.errors import RunError

ROWS = [("here", "slow"), ("here", "fast")]


class ByHand:
    """Two slots of three threads; answers are given by the test."""

    name, slots, threads = "by hand", 2, 3

    def __init__(self):
        self.prepared, self.submitted, self.closed = [], [], False

    def prepare(self, units):
        self.prepared = units

    def submit(self, unit):
        self.submitted.append((unit, Future()))
        return self.submitted[-1][1]

    def close(self):
        self.closed = True


@pytest.fixture
def pair(workload):
    """A unit a row, as they were planned: slow, fast."""
    return [workload.unit("adamw+linear", seed) for seed in (3, 4)]


def test_lines_come_as_runs_end(pair, capsys):
    execution = ByHand()
    with submitting(execution, pair, ROWS, {"seeds": 1}) as submitter:
        slow, fast = (submitter.submit(unit, row[1], place=row) for unit, row in zip(pair, ROWS, strict=True))
        assert execution.prepared == pair
        assert [unit.recipe.seed for unit, _ in execution.submitted] == [3, 4]
        for (unit, answer), error in zip(reversed(execution.submitted), ("signal 9", "no memory"), strict=True):
            # What a run's time depends on is in its hash.
            assert (unit.plan["chosen"]["threads"], unit.place) == (3, f"2 x 3 on {platform.node()}, by hand")
            answer.set_result({"status": "failed", "error": error})
    assert execution.closed
    assert (slow.result().answer["error"], fast.result().answer["error"]) == ("no memory", "signal 9")
    assert not slow.result().reused
    assert capsys.readouterr().err == "[1/2] fast: failed: signal 9\n[2/2] slow: failed: no memory\n"


def test_what_is_finished_is_found(pair, capsys):
    execution = ByHand()
    place = f"2 x 3 on {platform.node()}, by hand"
    done = pair[1].on(3, place)
    perform(done)
    with submitting(execution, pair, ROWS, {"seeds": 1}) as submitter:
        found = submitter.outcomes({"done": (pair[1], ROWS[1])})
    assert execution.submitted == []
    assert list(found) == ["done"]
    assert (found["done"].unit, found["done"].reused) == (done, True)
    assert capsys.readouterr().err.startswith("[1/2] fast, seed 4: ")


def test_outcomes_keep_their_keys(pair):
    class Refusing(ByHand):
        def submit(self, unit):
            answer = super().submit(unit)
            answer.set_result({"status": "failed", "error": str(unit.recipe.seed)})
            return answer

    work = {rate: (unit, row) for rate, unit, row in zip((0.1, 0.01), pair, ROWS, strict=True)}
    with submitting(Refusing(), pair, ROWS, {"seeds": 1}, quiet=True) as submitter:
        found = submitter.outcomes(work)
    assert {rate: outcome.answer["error"] for rate, outcome in found.items()} == {0.1: "3", 0.01: "4"}


def test_who_waits_hears_of_what_went_wrong(pair):
    """A run that was dropped, and an outcome that cannot be read."""
    execution = ByHand()
    with submitting(execution, pair, ROWS, {"seeds": 1}, quiet=True) as submitter:
        dropped, unreadable = (submitter.submit(unit, row[1], place=row) for unit, row in zip(pair, ROWS, strict=True))
        (_, first), (_, second) = execution.submitted
        first.cancel()
        second.set_result({"status": "finished"})  # and there is no such run
    with pytest.raises(CancelledError):
        dropped.result(timeout=1)
    with pytest.raises(RunError):
        unreadable.result(timeout=1)


def test_an_execution_is_closed_whatever_happens(pair):
    execution = ByHand()
    with pytest.raises(KeyboardInterrupt), submitting(execution, pair, ROWS, {"seeds": 1}, quiet=True):
        raise KeyboardInterrupt
    assert execution.closed
