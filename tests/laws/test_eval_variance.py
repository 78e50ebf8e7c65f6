"""Noise over seeds, monotonicity and signal to noise, against the numbers of the method sheet."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thalweg.errors import UserError
from thalweg.laws.eval_variance import accuracy_half_width, distinguishable, monotonicity, seed_sd, signal_to_noise

SCORES = [[20, 30, 35, 40], [22, 28, 36, 41], [18, 31, 33, 42]]


@pytest.mark.parametrize(
    ("ddof", "each", "mean"),
    [(0, [1.632993, 1.247219, 1.247219, 0.816497], 1.235982), (1, [2, 1.527525, 1.527525, 1], 1.513763)],
)
def test_seed_sd_of_the_sheet(ddof, each, mean):
    assert seed_sd(SCORES, ddof=ddof) == pytest.approx(mean, abs=1e-6)
    columns = [seed_sd([[row[index]] for row in SCORES], ddof=ddof) for index in range(4)]
    assert columns == pytest.approx(each, abs=1e-6)


def test_seed_sd_divides_by_seeds_less_one_unless_told():
    assert seed_sd(SCORES) == seed_sd(SCORES, ddof=1)
    assert signal_to_noise(SCORES) == signal_to_noise(SCORES, ddof=1)


def test_progress_in_training_is_no_noise():
    curve = np.linspace(0, 100, 20)
    assert seed_sd([curve, curve + 2]) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(("ddof", "expected"), [(0, 50.2145), (1, 41.0)])
def test_signal_to_noise_of_the_sheet(ddof, expected):
    assert signal_to_noise(SCORES, ddof=ddof) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("curve", "tau"), [([25, 27, 26, 30, 29, 33], 0.733333), ([25, 25, 26, 30], 0.912871)], ids=["plain", "tied"]
)
def test_kendall_of_the_sheet(curve, tau):
    assert monotonicity([curve]) == pytest.approx(tau, abs=1e-6)
    assert monotonicity([curve], decreasing=True) == pytest.approx(-tau, abs=1e-6)


def test_monotonicity_of_extremes():
    rising = [1.0, 2.0, 4.0, 8.0]
    assert monotonicity([rising]) == pytest.approx(1.0)
    assert monotonicity([rising[::-1]]) == pytest.approx(-1.0)
    assert monotonicity([rising[::-1]], decreasing=True) == pytest.approx(1.0)
    assert monotonicity([rising, rising[::-1]]) == pytest.approx(0.0, abs=1e-12)
    assert monotonicity([[0.25] * 4]) == 0.0


def test_monotonicity_at_chance_level_is_about_zero():
    noise = np.random.default_rng(0).normal(25, 1, (400, 20))
    # A single tau of 20 checkpoints has sd 0.16, their mean over 400 seeds 0.008.
    assert monotonicity(noise) == pytest.approx(0.0, abs=0.032)


def test_identical_seeds_have_no_noise():
    # Three times 0.1 has a spread of 1e-17 when the mean is taken first.
    same = [[0.3, 0.1]] * 3
    assert seed_sd(same) == 0.0
    assert signal_to_noise(same) == math.inf
    assert signal_to_noise([[-2.0], [-2.0]]) == -math.inf


@pytest.mark.parametrize(
    ("percent", "items", "half_width", "digit"),
    [
        (39.71, 1165, 2.81, 0.005),
        (78.80, 100, 8.01, 0.005),
        (70.08, 10042, 0.896, 0.0005),
        (11.89, 164, 4.95, 0.005),
        (25.86, 14042, 0.724, 0.0005),
        (37.47, 14042, 0.801, 0.0005),
    ],
    ids=["ARC-C", "COPA", "HellaSwag", "HumanEval", "MMLU", "MMLU-Cloze"],
)
def test_accuracy_intervals_of_the_sheet(percent, items, half_width, digit):
    assert 100 * accuracy_half_width(percent / 100, items) == pytest.approx(half_width, abs=digit)


def test_two_seeds_of_one_recipe_are_told_apart_in_five_percent():
    sd = 0.7
    one, other = np.random.default_rng(1).normal(40, sd, (2, 20_000))
    differences = one - other
    assert differences.var() == pytest.approx(2 * sd**2, rel=0.04)
    called = sum(distinguishable(difference, sd) for difference in differences) / len(differences)
    assert called == pytest.approx(0.05, abs=0.006)


def test_distinguishable_by_hand():
    # 1.96 * sqrt(2) = 2.771859.
    assert not distinguishable(2.7718, 1.0)
    assert distinguishable(2.7719, 1.0)
    assert distinguishable(-2.7719, 1.0)
    assert not distinguishable(0.0, 0.0)
    assert distinguishable(1e-9, 0.0)
    assert not distinguishable(5.0, 1.0, item_interval=(-1.0, 11.0))
    assert distinguishable(5.0, 1.0, item_interval=(1.0, 9.0))
    assert distinguishable(-5.0, 1.0, item_interval=(-9.0, -1.0))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: seed_sd([[1.0, 2.0]]),
        lambda: signal_to_noise([[1.0, 2.0]]),
        lambda: seed_sd([]),
        lambda: seed_sd([[], []]),
        lambda: seed_sd([[1.0, 2.0], [1.0]]),
        lambda: seed_sd([1.0, 2.0]),
        lambda: seed_sd([[1.0, math.nan], [1.0, 2.0]]),
        lambda: monotonicity([[1.0], [2.0]]),
        lambda: accuracy_half_width(39.71, 1165),
        lambda: accuracy_half_width(0.5, 0),
        lambda: distinguishable(1.0, -1.0),
        lambda: distinguishable(1.0, math.nan),
    ],
)
def test_nonsense_is_refused(mistake):
    with pytest.raises(UserError):
        mistake()
