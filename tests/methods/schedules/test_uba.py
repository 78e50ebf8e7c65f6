"""UBA against the numbers and identities of its sheet: 8 steps after the warm-up are progress t / 8."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from thalweg.errors import RecipeError
from thalweg.methods.schedules import UBA, Cosine
from thalweg.methods.schedules.base import StepClock

ORACLE = {
    0.5: [1, 0.990205, 0.958871, 0.899591, 0.8, 0.641043, 0.406983, 0.136639, 0],
    1.0: [1, 0.980601, 0.920991, 0.817507, 0.666667, 0.471717, 0.255479, 0.073330, 0],
    2.0: [1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060, 0],
    5.0: [1, 0.909988, 0.699823, 0.472555, 0.285714, 0.151525, 0.064222, 0.015580, 0],
}


def factors(phi, total=8, floor=0.0):
    schedule = UBA(warmup=0.0, phi=phi, floor=floor)
    return [schedule.factor(StepClock(step=t, progress=t / total)) for t in range(total + 1)]


@pytest.mark.parametrize("phi", ORACLE)
def test_oracle(phi):
    assert factors(phi) == pytest.approx(ORACLE[phi], abs=1e-6)


def test_the_last_factor_is_the_floor_for_every_phi():
    for phi in (1e-3, 0.5, 2.0, 5.0, 1e3):
        assert factors(phi)[-1] == 0.0
        assert factors(phi, floor=0.1)[-1] == pytest.approx(0.1)


def test_warmup_comes_out_of_the_budget_before_the_curve():
    """With a fifth of warm-up the curve's middle is at 0.6, and the end is still 0."""
    schedule = UBA(warmup=0.2, phi=5.0)
    seen = [schedule.factor(StepClock(0, p)) for p in (0.1, 0.2, 0.6, 1.0)]
    assert seen == pytest.approx([0.5, 1.0, 2 / 7, 0.0])


def test_phi_2_is_cosine():
    uba, cosine = UBA(phi=2.0, floor=0.1), Cosine(floor=0.1)
    for step in range(101):
        clock = StepClock(step, step / 100)
        assert uba.factor(clock) == pytest.approx(cosine.factor(clock), abs=1e-15)


@pytest.mark.parametrize("phi", [0.25, 0.5, 1.0, 2.0, 4.0, 5.0])
def test_identities(phi):
    total = 4000
    values, reflected, cosine = factors(phi, total), factors(4 / phi, total), factors(2.0, total)
    assert values[total // 2] == pytest.approx(2 / (2 + phi))
    # The trapezoidal rule, whose error is of second order.
    mean = (sum(values) - 0.5 * (values[0] + values[-1])) / total
    assert mean == pytest.approx(1 / (1 + math.sqrt(phi / 2)), abs=1e-6)
    assert values == pytest.approx([1 - value for value in reversed(reflected)], abs=1e-12)
    for value, base in zip(values[1:-1:100], cosine[1:-1:100], strict=True):
        logit = math.log(value / (1 - value))
        assert logit == pytest.approx(math.log(base / (1 - base)) + math.log(2 / phi), abs=1e-6)


def test_falls_in_time_and_in_phi():
    curves = [factors(phi, 50) for phi in (0.01, 0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 100.0)]
    assert all(later < earlier for curve in curves for earlier, later in pairwise(curve))
    assert all(high > low for one, two in pairwise(curves) for high, low in zip(one[1:-1], two[1:-1], strict=True))


def test_limits():
    """Towards 0 constant until the end, towards infinity gone at once."""
    assert min(factors(1e-9, 20)[:-1]) > 0.999
    assert max(factors(1e9, 20)[1:]) < 1e-6


@pytest.mark.parametrize("phi", [0.0, -1.0, math.nan, math.inf])
def test_phi_that_is_no_positive_number_is_refused(phi):
    with pytest.raises(RecipeError, match="phi"):
        UBA(phi=phi)


def test_floor_that_is_no_share_is_refused():
    with pytest.raises(RecipeError, match="floor"):
        UBA(floor=1.5)
