"""WSD-S against the numbers of its sheet, with the sheet's steps mapped to progress s / S.

The sheet counts a step by its beginning and so finds the step after a segment's end at the peak; here a segment
includes its end, which is the floor, and the peak comes right after it.
"""

from __future__ import annotations

import math

import pytest

from thalweg.errors import RecipeError
from thalweg.methods.schedules import WSD, WSDS
from thalweg.methods.schedules.base import StepClock

ENDS = "0.25/0.5/1"  # 20, 40 and 80 of 80 steps


def factors(schedule, steps, total=80):
    return [schedule.factor(StepClock(step=int(s), progress=s / total)) for s in steps]


def test_oracle():
    schedule = WSDS(warmup=4 / 80, ends=ENDS)
    assert factors(schedule, range(5)) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert factors(schedule, [17, 18, 19, 20.001, 21]) == pytest.approx([1, 1, 0.181818, 1, 1], abs=1e-6)
    assert factors(schedule, [38, 39]) == pytest.approx([1, 0.181818], abs=1e-6)
    assert factors(schedule, [76, 77, 78, 79]) == pytest.approx([1, 0.307692, 0.181818, 0.129032], abs=1e-6)
    assert factors(schedule, [20, 40, 80]) == pytest.approx([0.1] * 3)
    assert schedule.trunk_end == pytest.approx(76 / 80)


def test_steps_of_a_run():
    """As the clock gives them: step t sees (t + 1) / T, and the 20th step is the floor, the 21st the peak."""
    schedule = WSDS(warmup=4 / 80, ends=ENDS)
    seen = factors(schedule, range(1, 81))
    assert [t for t, value in enumerate(seen, 1) if value == pytest.approx(0.1)] == [20, 40, 80]
    assert seen[20] == seen[40] == 1.0
    assert sum(value < 1.0 for value in seen) == 3 + 2 + 2 + 4


@pytest.mark.parametrize("shape", ["reciprocal", "linear", "cosine"])
def test_one_end_is_wsd(shape):
    one = WSDS(warmup=0.1, decay=0.3, shape=shape, floor=0.05)
    other = WSD(warmup=0.1, decay=0.3, shape=shape, floor=0.05)
    assert factors(one, range(81)) == pytest.approx(factors(other, range(81)), abs=1e-12)
    assert one.trunk_end == pytest.approx(other.trunk_end)


def test_all_decay_and_cosine_is_cyclic_cosine():
    schedule = WSDS(warmup=0.0, ends="0.25/0.5/1", decay=1.0, shape="cosine", floor=0.0)
    expected = []
    for start, stop in ((0, 20), (20, 40), (40, 80)):
        expected += [(1 + math.cos(math.pi * (s - start) / (stop - start))) / 2 for s in range(start + 1, stop + 1)]
    assert factors(schedule, range(1, 81)) == pytest.approx(expected, abs=1e-9)


def test_the_decay_takes_what_the_warmup_leaves():
    schedule = WSDS(warmup=0.1, ends="0.25/1", decay=1.0, shape="linear", floor=0.0)
    assert factors(schedule, [4, 8, 14, 20, 50]) == pytest.approx([0.5, 1.0, 0.5, 0.0, 0.5])


def test_reciprocal_midpoint_is_the_harmonic_mean():
    schedule = WSDS(warmup=0.0, decay=1.0, floor=0.1)
    assert factors(schedule, [40]) == pytest.approx([2 * 0.1 / 1.1])


def test_rewarmup_rises_from_the_floor_in_later_segments_only():
    schedule = WSDS(warmup=0.0, ends="0.5/1", rewarmup=0.1, shape="linear", decay=0.1)
    assert factors(schedule, [0, 1, 40, 42, 44, 75]) == pytest.approx([1.0, 1.0, 0.1, 0.55, 1.0, 1.0])


def test_ends_that_floats_cannot_hold():
    """Thirds: the step that ends a segment sees a quotient a hair beside it."""
    schedule = WSDS(warmup=0.0, ends="0.3333333333333333/0.6666666666666667/1", decay=0.1)
    for total in (3, 6, 9, 21, 999, 30_000):
        values = factors(schedule, [total // 3, 2 * total // 3, total], total)
        assert values == pytest.approx([0.1] * 3, abs=1e-6)


def river(factor, peak=0.1, steps=1000):
    """Expected loss of SGD in a valley: curvature 10 with noise 1, curvature 0.002 without; from (0, 10)."""
    wall, along, losses = 0.0, 10.0, []
    for step in range(steps):
        rate = peak * factor(step)
        wall = (1 - rate * 10) ** 2 * wall + rate**2
        along *= 1 - rate * 0.002
        losses.append(0.5 * (10 * wall + 0.002 * along**2))
    return losses


def test_valley_oracle():
    """Three models of one run against the sheet's losses; there a step begins at s / S, and the floor is 0.1."""
    schedule = WSDS(warmup=0.0, ends=ENDS)
    losses = river(lambda s: schedule.factor(StepClock(s, (s + 1e-3) / 1000)))
    assert [losses[249], losses[499], losses[999]] == pytest.approx([0.0944, 0.0863, 0.0719], abs=5e-5)
    constant = river(lambda s: 1.0)
    assert [constant[249], constant[499], constant[999]] == pytest.approx([0.1405, 0.1319, 0.1170], abs=5e-5)
    cyclic = WSDS(warmup=0.0, ends=ENDS, decay=1.0, shape="cosine")
    losses = river(lambda s: cyclic.factor(StepClock(s, (s + 1e-3) / 1000)))
    assert [losses[249], losses[499], losses[999]] == pytest.approx([0.0973, 0.0922, 0.0829], abs=5e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ends": "0.5/0.25/1"}, "rise to 1"),
        ({"ends": "0.5/0.75"}, "rise to 1"),
        ({"ends": "0/1"}, "rise to 1"),
        ({"ends": "nan/1"}, "rise to 1"),
        ({"ends": "a/1"}, "rise to 1"),
        ({"ends": ""}, "rise to 1"),
        ({"ends": "0.25/1", "warmup": 0.3}, "first segment"),
        ({"decay": 1.5}, "decay"),
        ({"rewarmup": -1.0}, "rewarmup"),
        ({"shape": "exponential"}, "exponential"),
        ({"floor": 0.0}, "floor above 0"),
    ],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        WSDS(**options)


def test_an_arm_spells_the_ends():
    from thalweg.recipe import Recipe

    recipe = Recipe.parse("wsd_s:ends=0.25/0.5/1,decay=0.2")
    assert recipe.schedule.build().ends == [0.25, 0.5, 1.0]
    assert "wsd_s:decay=0.2,ends=0.25/0.5/1" in recipe.arm
