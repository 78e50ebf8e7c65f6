"""The forecast of a training curve on curves whose end is known."""

from __future__ import annotations

import time

import numpy as np
import pytest

from thalweg.laws.power_curve import forecast

STEPS = np.arange(1, 2001)


def curve(E, A, alpha, noise=0.0, seed=0, steps=STEPS):
    return E + A * steps**-alpha + noise * np.random.default_rng(seed).normal(size=len(steps))


@pytest.mark.parametrize(("E", "A", "alpha"), [(2.0, 8.0, 0.4), (1.5, 6.0, 0.25), (0.0, 8.0, 0.1), (3.0, 20.0, 1.0)])
def test_exact_curves(E, A, alpha):
    truth = E + A * 10_000.0**-alpha
    found = forecast(STEPS, curve(E, A, alpha), 10_000)
    assert found is not None
    assert found.value == pytest.approx(truth, rel=1e-3)
    assert pytest.approx(E, abs=0.03) == found.E
    assert found.alpha == pytest.approx(alpha, rel=0.03)
    assert found.E + found.A * 10_000.0**-found.alpha == pytest.approx(found.value, rel=1e-9)


@pytest.mark.parametrize(("E", "A", "alpha"), [(2.0, 8.0, 0.4), (1.5, 6.0, 0.25), (0.0, 8.0, 0.1)])
def test_noisy_curves_are_within_two_percent_and_the_interval_holds(E, A, alpha):
    truth = E + A * 10_000.0**-alpha
    found = [forecast(STEPS, curve(E, A, alpha, 0.05, seed), 10_000) for seed in range(40)]
    assert all(f is not None and abs(f.value / truth - 1) < 0.02 for f in found)
    assert sum(f.low <= truth <= f.high for f in found) >= 36
    assert np.mean([f.high - f.low for f in found]) < 0.03 * truth


def test_outliers_hardly_move_it():
    losses = curve(2.0, 8.0, 0.4, 0.02)
    clean = forecast(STEPS, losses, 10_000)
    losses[900:905] += 5.0
    spiked = forecast(STEPS, losses, 10_000)
    assert spiked.value == pytest.approx(clean.value, rel=0.01)


def test_warm_up_is_left_out():
    losses = curve(2.0, 8.0, 0.4)
    losses[:60] = 10.0
    assert forecast(STEPS, losses, 10_000).value == pytest.approx(2.2009, rel=2e-3)


def test_the_measure_of_time_may_be_tokens():
    by_steps = forecast(STEPS, curve(2.0, 8.0, 0.4, 0.02), 10_000)
    by_tokens = forecast(STEPS * 8192, curve(2.0, 8.0, 0.4, 0.02), 10_000 * 8192)
    assert by_tokens.value == pytest.approx(by_steps.value, rel=1e-9)


def test_not_a_number_is_left_out():
    losses = curve(2.0, 8.0, 0.4)
    losses[500] = np.nan
    losses[600] = np.inf
    assert forecast(STEPS, losses, 10_000).value == pytest.approx(2.2009, rel=2e-3)


@pytest.mark.parametrize(
    ("steps", "losses"),
    [
        ([], []),
        (STEPS[:30], curve(2, 8, 0.4, steps=STEPS[:30])),
        (STEPS[-200:], curve(2, 8, 0.4, steps=STEPS[-200:])),
        (STEPS[:100], 4 + np.random.default_rng(0).normal(size=100)),
        (STEPS, np.linspace(2.0, 4.0, 2000)),
        (STEPS, np.full(2000, np.nan)),
        (STEPS, curve(2, 8, 0.4)[:-1]),
    ],
    ids=["empty", "short", "narrow", "noise", "rising", "nan", "unequal"],
)
def test_refuses(steps, losses):
    assert forecast(steps, losses, 10_000) is None


def test_fast_enough_for_a_live_line():
    losses = curve(2.0, 8.0, 0.4, 0.05).tolist()
    steps = STEPS.tolist()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        forecast(steps, losses, 10_000)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02
