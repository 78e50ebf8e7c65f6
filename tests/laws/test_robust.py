"""Robust fits of any law: the least Huber loss, errors by number, bounds, and intervals as wide as Student's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import t

from thalweg.errors import UserError
from thalweg.laws import robust
from thalweg.laws.fitting import huber

X = np.linspace(-1, 1, 9)
BOUNDS = np.array([-5.0, -5.0]), np.array([5.0, 5.0])


def line(theta):
    return theta[:, :1] + theta[:, 1:] * X


def noisy(seed, noise=0.01, slope=0.5):
    return 1.0 + slope * X + noise * np.random.default_rng(seed).normal(size=len(X))


def test_the_least_huber_loss_is_found():
    """Against scipy's search without slopes, which starts at the answer and finds nothing better."""
    for seed in range(4):
        measured = noisy(seed)
        theta = robust.minimise(line, measured, np.zeros((1, 2)), BOUNDS, 1e-3)

        def cost(trial, measured=measured):
            return huber(measured - line(trial[None])[0], 1e-3).sum()

        better = minimize(cost, theta, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14})
        assert cost(theta) == pytest.approx(better.fun, rel=1e-5)


def test_bounds_hold_and_do_not_spoil_the_rest():
    low, high = BOUNDS[0], np.array([5.0, 0.3])
    theta = robust.minimise(line, noisy(0, 0.0), np.array([[0.0, -2.0]]), (low, high), 1e-3)
    assert theta == pytest.approx([1.0, 0.3], abs=1e-6)


def test_size_of_errors():
    # Two of four points are met exactly: the two to spare say it all.
    assert robust.error_size(np.array([0.0, 0.3, 0.0, -0.4]), 2) == pytest.approx(np.sqrt(0.25 / 2))
    # One gross error counts as three typical ones, or a little more.
    sizes = np.array([0.1] * 20 + [50.0])
    assert robust.error_size(sizes, 19) == pytest.approx(np.sqrt((20 * 0.01 + (0.1 * 3 * 1.4826) ** 2) / 19))
    found = [robust.fit(line, noisy(seed, 0.02), np.zeros((1, 2)), BOUNDS, refits=0).sigma for seed in range(60)]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(0.02, rel=0.15)


def test_intervals_are_as_wide_as_students():
    """Beyond the points of a straight line least squares has an exact answer; delta is wide enough to make it that."""
    measured = noisy(3)
    fit = robust.fit(line, measured, np.zeros((1, 2)), BOUNDS, delta=1.0, refits=4000)
    low, high = fit.interval((fit.refits[:, 0] + 2 * fit.refits[:, 1]), 0.95)
    residuals = measured - np.polyval(np.polyfit(X, measured, 1), X)
    spread = np.sqrt((residuals**2).sum() / 7 * (1 + 1 / 9 + 4 / (X**2).sum()))
    assert np.log(high / low) / 2 == pytest.approx(t.ppf(0.975, 7) * spread, rel=0.07)
    assert np.log(high * low) / 2 == pytest.approx(np.polyval(np.polyfit(X, measured, 1), 2.0), abs=0.1 * spread)


def test_the_same_seed_gives_the_same_interval():
    fits = [robust.fit(line, noisy(1), np.zeros((1, 2)), BOUNDS, refits=30, seed=5) for _ in range(2)]
    assert fits[0].interval(fits[0].refits[:, 0]) == fits[1].interval(fits[1].refits[:, 0])
    other = robust.fit(line, noisy(1), np.zeros((1, 2)), BOUNDS, refits=30, seed=6)
    assert other.interval(other.refits[:, 0]) != fits[0].interval(fits[0].refits[:, 0])


def test_without_refits_there_is_no_interval():
    fit = robust.fit(line, noisy(1), np.zeros((1, 2)), BOUNDS, refits=0)
    with pytest.raises(UserError, match="no refits"):
        fit.interval(fit.refits[:, 0])
