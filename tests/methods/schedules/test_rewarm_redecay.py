"""Re-warm and re-decay against its sheet: 10 of 100 steps up from 3e-5 to 3e-4, then a cosine to 3e-5."""

from __future__ import annotations

import pytest

from thalweg.errors import RecipeError
from thalweg.methods.schedules import Cosine, RewarmRedecay
from thalweg.methods.schedules.base import StepClock


def rates(schedule, steps, peak=3e-4):
    return [peak * schedule.factor(StepClock(step=s, progress=s / 100)) for s in steps]


def test_oracle():
    schedule = RewarmRedecay(warmup=0.1, start=0.1, floor=0.1)
    assert rates(schedule, [0, 5, 10, 55, 100]) == pytest.approx([3e-5, 1.65e-4, 3e-4, 1.65e-4, 3e-5], rel=1e-9)


def test_from_zero_it_is_cosine():
    steps = range(101)
    assert rates(RewarmRedecay(warmup=0.1, start=0.0, floor=0.1), steps) == rates(Cosine(0.1, floor=0.1), steps)


def test_floor_and_start_at_the_peak_are_a_constant_rate():
    assert rates(RewarmRedecay(start=1.0, floor=1.0), range(101)) == pytest.approx([3e-4] * 101)


def test_it_begins_where_the_run_before_ended():
    before, after = Cosine(floor=0.1), RewarmRedecay()
    assert after.factor(StepClock(0, 0.0)) == pytest.approx(before.factor(StepClock(0, 1.0)))


@pytest.mark.parametrize("option", ["start", "floor"])
def test_mistakes_are_named(option):
    with pytest.raises(RecipeError, match=option):
        RewarmRedecay(**{option: 1.1})
