"""The infinite schedule against the numbers of its sheet: peak 3e-4, constant 1.65e-4, floor 3e-5, 100 steps."""

from __future__ import annotations

import math

import pytest

from thalweg.errors import RecipeError
from thalweg.methods.schedules import WSD, Cosine, Infinite
from thalweg.methods.schedules.base import StepClock

STEPS = [0, 5, 10, 22, 35, 48, 60, 84, 85, 90, 95, 100]
ORACLE = {
    "cosine": [0, 1.5, 3.0, 2.81705, 2.325, 1.83295, 1.65, 1.65, 1.65, 0.93475, 0.52955, 0.3],
    "inverse_sqrt": [0, 1.5, 3.0, 2.11543, 1.8563, 1.72632, 1.65, 1.65, 1.65, 0.93475, 0.52955, 0.3],
}
SHARES = {"warmup": 0.1, "cooldown": 0.5, "anneal": 0.15}


def factors(schedule, steps, total=100):
    return [schedule.factor(StepClock(step=s, progress=s / total)) for s in steps]


@pytest.mark.parametrize("shape", ORACLE)
def test_oracle(shape):
    schedule = Infinite(**SHARES, constant=1.65 / 3, floor=0.1, shape=shape)
    assert [3 * value for value in factors(schedule, STEPS)] == pytest.approx(ORACLE[shape], abs=1e-5)


def test_annealing_is_halfway_in_logarithms():
    schedule = Infinite(**SHARES, constant=0.5, floor=0.02)
    assert schedule.factor(StepClock(0, 0.925)) == pytest.approx(math.sqrt(0.5 * 0.02))


@pytest.mark.parametrize("shape", ORACLE)
def test_continuous_at_every_boundary_and_never_zero(shape):
    schedule = Infinite(**SHARES, shape=shape, alpha=100.0)
    for boundary in (0.1, 0.6, 0.85):
        before, after = (schedule.factor(StepClock(0, boundary + nudge)) for nudge in (-1e-7, 1e-7))
        assert before == pytest.approx(after, abs=2e-4)
    assert min(factors(schedule, range(1, 101))) > 0.0


def test_inverse_sqrt_falls_before_cosine_and_alpha_says_how_much():
    slow, fast = (Infinite(**SHARES, shape="inverse_sqrt", alpha=alpha) for alpha in (0.01, 1000.0))
    early = StepClock(0, 0.2)
    assert fast.factor(early) < Infinite(**SHARES, shape="inverse_sqrt").factor(early) < slow.factor(early)
    # With a small alpha it is a straight line: a fifth of the way from 1 to 0.55.
    assert slow.factor(early) == pytest.approx(0.91, abs=1e-3)


def test_constant_at_the_peak_is_wsd_with_an_exponential_decay():
    schedule = Infinite(warmup=0.1, cooldown=0.3, anneal=0.2, constant=1.0, floor=1 / 16)
    wsd = WSD(warmup=0.1, decay=0.2, shape="exponential", half_life=0.25)
    assert factors(schedule, range(101)) == pytest.approx(factors(wsd, range(101)), abs=1e-12)


def test_nothing_but_cooling_is_cosine_to_the_constant():
    schedule = Infinite(warmup=0.25, cooldown=0.75, anneal=0.0, constant=0.4)
    cosine = Cosine(warmup=0.25, floor=0.4)
    assert factors(schedule, range(101)) == pytest.approx(factors(cosine, range(101)), abs=1e-12)


def test_trunk_does_not_depend_on_where_the_run_ends():
    """Step by step the same rate in runs of 100 and of 400 steps with the same warm-up and cooldown in steps."""
    short = Infinite(warmup=0.1, cooldown=0.4, anneal=0.2)
    long = Infinite(warmup=0.025, cooldown=0.1, anneal=0.5)
    assert factors(short, range(81)) == pytest.approx(factors(long, range(81), total=400), abs=1e-12)
    assert short.trunk_end == pytest.approx(0.8)


def test_a_later_data_set_starts_at_the_constant_without_a_jump():
    first, later = Infinite(), Infinite(warmup=0.0, cooldown=0.0)
    assert first.factor(StepClock(0, first.trunk_end)) == pytest.approx(0.55)
    assert factors(later, [0, 1, 50, 85]) == pytest.approx([0.55] * 4)
    assert later.factor(StepClock(0, 1.0)) == pytest.approx(0.1)


def test_defaults_cool_until_three_fifths_and_rest_for_a_quarter():
    assert factors(Infinite(), [1, 60, 61, 85, 100]) == pytest.approx([1.0, 0.55, 0.55, 0.55, 0.1])
    assert Infinite().factor(StepClock(0, 0.59)) > 0.55


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cooldown": 0.9, "anneal": 0.2}, "add up"),
        ({"floor": 0.0}, "floor"),
        ({"floor": 0.6}, "at most constant"),
        ({"constant": 1.2}, "constant"),
        ({"shape": "linear"}, "linear"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"anneal": -0.1}, "anneal"),
    ],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        Infinite(**options)
