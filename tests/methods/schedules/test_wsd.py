"""WSD against the numbers of its sheet, with the sheet's steps mapped to progress s / S."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from thalweg.errors import RecipeError
from thalweg.methods.schedules.base import StepClock
from thalweg.methods.schedules.wsd import SHAPES, WSD


def factors(schedule, total=12, start=0):
    return [schedule.factor(StepClock(step=s, progress=s / total)) for s in range(start, total + 1)]


def test_exponential_oracle():
    schedule = WSD(warmup=4 / 12, decay=4 / 12, shape="exponential", half_life=2 / 4)
    expected = [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.707107, 0.5, 0.353553, 0.25]
    assert factors(schedule) == pytest.approx(expected, abs=1e-6)


def test_linear_to_floor_oracle():
    schedule = WSD(warmup=4 / 12, decay=4 / 12, floor=0.1)
    assert factors(schedule, start=8) == pytest.approx([1, 0.775, 0.55, 0.325, 0.1], abs=1e-9)


def test_reciprocal_oracle():
    schedule = WSD(warmup=4 / 12, decay=4 / 12, shape="reciprocal", floor=0.1)
    assert factors(schedule, start=8) == pytest.approx([1, 0.307692, 0.181818, 0.129032, 0.1], abs=1e-6)


def test_one_minus_sqrt_and_cosine():
    root = WSD(warmup=0.0, decay=1.0, shape="one_minus_sqrt")
    cosine = WSD(warmup=0.0, decay=1.0, shape="cosine", floor=0.2)
    assert root.factor(StepClock(0, 0.25)) == pytest.approx(0.5)
    assert root.factor(StepClock(0, 1.0)) == 0.0
    assert cosine.factor(StepClock(0, 0.5)) == pytest.approx(0.6)
    assert cosine.factor(StepClock(0, 1.0)) == pytest.approx(0.2)


@pytest.mark.parametrize("shape", SHAPES)
def test_decay_falls_from_one_and_never_rises(shape):
    values = factors(WSD(warmup=0.1, decay=0.3, shape=shape, floor=0.05), total=200, start=20)
    assert values[0] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(values))
    assert values[120] == pytest.approx(1.0)
    assert values[121] < 1.0


@pytest.mark.parametrize("shape", ["linear", "cosine", "one_minus_sqrt"])
def test_last_step_lands_on_zero(shape):
    assert WSD(shape=shape).factor(StepClock(0, 1.0)) == 0.0


def test_no_decay_is_constant_and_a_long_half_life_too():
    assert factors(WSD(warmup=0.25, decay=0.0))[3:] == [1.0] * 10
    slow = WSD(warmup=0.25, decay=0.5, shape="exponential", half_life=1e12)
    assert factors(slow)[3:] == pytest.approx([1.0] * 10, abs=1e-9)


def test_no_trunk_is_warmup_and_decay():
    values = factors(WSD(warmup=0.25, decay=0.75))
    assert values == pytest.approx([s / 3 for s in range(3)] + [(12 - s) / 9 for s in range(3, 13)])


def test_trunk_does_not_depend_on_where_the_run_ends():
    """The factor at step 30 is that of a longer run: what makes branching possible."""
    short, long = WSD(warmup=0.1), WSD(warmup=0.05)
    for step in range(80):
        assert short.factor(StepClock(step, step / 100)) == pytest.approx(long.factor(StepClock(step, step / 200)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warmup": 0.6, "decay": 0.5}, "add up"),
        ({"decay": 1.2}, "decay"),
        ({"floor": -0.1}, "floor"),
        ({"shape": "wobbly"}, "wobbly"),
        ({"shape": "reciprocal"}, "floor"),
        ({"half_life": 0.0}, "half_life"),
        ({"half_life": math.nan}, "half_life"),
    ],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        WSD(**options)
