from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.budget import Budget
from thalweg.training.clock import Clock


def spend(budget: str, tokens: int = 100, flops: float = 1e6, **arguments) -> tuple[Clock, list[float]]:
    clock, seen = Clock(Budget.parse(budget), **arguments), []
    while not clock.last:
        clock.begin_step(tokens, flops)
        seen.append(clock.progress)
        clock.advance(tokens, flops)
    return clock, seen


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ("7 steps", 7),
        ("1 step", 1),
        ("700 tokens", 7),
        ("799 tokens", 7),
        ("50 tokens", 1),
        ("7.5e6 flops", 7),
        ("2 epochs", 8),
    ],
)
def test_counted_budgets_are_spent_and_not_overspent(budget, steps):
    clock, seen = spend(budget, epoch_tokens=400)
    assert clock.step == steps
    assert seen[-1] == 1.0
    assert all(a < b for a, b in itertools.pairwise(seen))


def test_progress_of_steps_is_exact():
    assert spend("4 steps")[1] == [0.25, 0.5, 0.75, 1.0]


@given(st.integers(1, 400), st.integers(1, 5000))
def test_every_last_step_sees_one(steps, tokens):
    clock, seen = spend(f"{steps * tokens} tokens", tokens=tokens)
    assert clock.step == steps
    assert seen[-1] == 1.0
    assert len([p for p in seen if p == 1.0]) == 1


class Time:
    """Stands for time.monotonic, so that a time budget is tested without waiting."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Time:
    found = Time()
    monkeypatch.setattr(time, "monotonic", found)
    return found


def test_a_time_budget_ends_on_time_with_its_reserve(watch):
    clock = Clock(Budget.parse("100s"), step_seconds=0.7)
    clock.reserve |= {"evaluation": 3.0, "checkpoint": 1.0}
    watch.now += 9.0  # planning counts
    seen = []
    while not clock.last:
        clock.begin_step(10, 1.0)
        seen.append(clock.progress)
        duration = 0.5 if clock.step % 7 else 0.9
        watch.now += duration
        clock.advance(10, 1.0, duration)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert seen[0] == pytest.approx((9.0 + 0.7) / 96.0)
    assert clock.seconds + 4.0 == pytest.approx(100.0, abs=0.6)


def test_slowing_down_never_turns_progress_back(watch):
    clock = Clock(Budget.parse("100s"), step_seconds=10.0)
    clock.begin_step(1, 1.0)
    first = clock.progress
    watch.now += 0.1
    clock.advance(1, 1.0, 0.1)
    clock.begin_step(1, 1.0)
    assert clock.progress >= first


def test_state_round_trip(watch):
    clock = Clock(Budget.parse("100s"), step_seconds=1.0)
    for _ in range(5):
        clock.begin_step(10, 2.0)
        watch.now += 1.0
        clock.advance(10, 2.0, 1.0)
    state = clock.state_dict()
    watch.now += 500.0  # the time between interruption and resumption is not the run's
    other = Clock(Budget.parse("100s"))
    other.load_state_dict(state)
    assert (other.step, other.tokens, other.flops, other.progress) == (5, 50, 10.0, clock.progress)
    assert other.seconds == pytest.approx(5.0)
    assert other.step_seconds == 1.0
    assert other.remaining_seconds(10, 2.0) == pytest.approx(95.0)


def test_remaining_seconds_of_a_counted_budget():
    clock = Clock(Budget.parse("10 steps"), step_seconds=2.0)
    assert clock.remaining_seconds(1, 1.0) == 20.0
