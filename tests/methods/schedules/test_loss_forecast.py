"""The exponential forecast against the sheet's numbers and against curves whose end is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thalweg.methods.schedules.loss_forecast import denoise, fit_exponential, forecast_loss, noise_variance

X = np.arange(100)


def test_exact_curve_oracle():
    found = fit_exponential(X, 1.5 * np.exp(-0.03 * X) + 2.0)
    assert (found.a, found.b, found.c) == pytest.approx((1.5, -0.03, 2.0), abs=1e-6)
    assert found.at(1000) == pytest.approx(2.0, abs=1e-6)


def test_noisy_curve_oracle():
    noise = np.random.default_rng(0).normal(0.0, 0.05, 100)
    found = fit_exponential(X, 1.5 * np.exp(-0.03 * X) + 2.0 + noise)
    assert found.a == pytest.approx(1.486, abs=5e-4)
    assert found.b == pytest.approx(-0.0293, abs=5e-5)
    assert found.c == pytest.approx(1.9986, abs=5e-5)


def test_slow_curve_oracle():
    assert fit_exponential(X, 1.5 * np.exp(-0.002 * X) + 2.0).at(1000) == pytest.approx(2.20300, abs=1e-5)


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.5])
def test_forecasts_of_a_slow_noisy_curve_are_finite_and_monotone(sigma):
    noise = np.random.default_rng(1).normal(0.0, sigma, 100)
    values = [forecast_loss(X, 1.5 * np.exp(-0.002 * X) + 2.0 + noise, horizon) for horizon in (100, 300, 1000, 3000)]
    assert all(map(math.isfinite, values))
    assert values in (sorted(values), sorted(values, reverse=True))


@pytest.mark.parametrize("shift", [0.0, -20.0, 3.0])
def test_a_rising_curve_and_a_negative_level_are_curves_too(shift):
    found = fit_exponential(X, shift - 2.0 * np.exp(-0.05 * X))
    assert (found.a, found.b, found.c) == pytest.approx((-2.0, -0.05, shift), abs=1e-5)


def test_places_need_not_be_every_step():
    places = np.arange(6, 97, 6)
    assert fit_exponential(places, 1.5 * np.exp(-0.03 * places) + 2.0).b == pytest.approx(-0.03, abs=1e-7)


def test_noise_is_measured_and_smoothed_away():
    clean = 1.5 * np.exp(-0.03 * X) + 2.0
    assert noise_variance(X, clean) < 1e-15
    noisy = clean + np.random.default_rng(0).normal(0.0, 0.05, 100)
    assert noise_variance(X, noisy) == pytest.approx(0.05**2, rel=0.5)
    assert np.abs(denoise(X, clean) - clean).max() < 1e-6
    assert np.square(denoise(X, noisy) - clean).mean() < 0.5 * np.square(noisy - clean).mean()


def test_an_early_outlier_does_not_bend_the_forecast():
    losses = 0.5 * np.exp(-0.03 * X) + 2.0 + np.random.default_rng(2).normal(0.0, 0.005, 100)
    spiked = losses.copy()
    spiked[20] += 3.0
    plain = fit_exponential(X, spiked).at(1000)
    assert abs(plain - 2.0) > 0.02
    assert forecast_loss(X, spiked, 1000) == pytest.approx(2.0, abs=0.02)


def test_what_cannot_be_continued():
    assert forecast_loss([0, 1, 2, 3, 4], [3.0, 2.0, math.nan, 1.0, 1.0], 50) == math.inf
    assert forecast_loss([0, 1, 2, 3, 4], [3.0, 2.0, math.inf, 1.0, 1.0], 50) == math.inf
    assert forecast_loss([], [], 50) == math.inf
    assert forecast_loss([0, 1, 2], [3.0, 2.5, 2.25], 50) == 2.25
    assert forecast_loss([0, 1, 2, 3], [2.0, 2.0, 2.0, 2.0], 50) == pytest.approx(2.0)
