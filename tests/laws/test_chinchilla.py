"""The Chinchilla law against published and computed numbers."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from thalweg.errors import UserError
from thalweg.laws import fitting
from thalweg.laws.chinchilla import HOFFMANN, HOFFMANN_ROUNDED, REPLICATION, ChinchillaLaw, fit

TRUTH = ChinchillaLaw(20, 60, 1.8, 0.2, 0.25)
RUNS = np.array([(n * 1e6, d * 1e7) for n in (1, 2, 4, 8, 16) for d in (2, 5, 10, 20, 50)])


def points(noise=0.0, seed=0):
    loss = TRUTH.predict(RUNS[:, 0], RUNS[:, 1])
    loss = loss * np.exp(noise * np.random.default_rng(seed).normal(size=len(loss)))
    return np.column_stack([RUNS, loss])


def logs(table):
    return np.log(table).T


def test_published_predictions():
    assert HOFFMANN_ROUNDED.predict(70e9, 1.4e12) == pytest.approx(1.93665, abs=1e-5)
    assert REPLICATION.predict(70e9, 1.4e12) == pytest.approx(1.97358, abs=1e-5)


@pytest.mark.parametrize(
    ("law", "n", "d", "ratio"),
    [
        (HOFFMANN_ROUNDED, 3.219e10, 2.982e12, 92.6),
        (HOFFMANN, 4.036e10, 2.379e12, 58.9),
        (REPLICATION, 7.225e10, 1.329e12, 18.4),
    ],
)
def test_published_allocations(law, n, d, ratio):
    best_n, best_d = law.optimal(5.76e23)
    assert best_n == pytest.approx(n, rel=5e-4)
    assert best_d == pytest.approx(d, rel=5e-4)
    assert best_d / best_n == pytest.approx(ratio, rel=2e-3)
    assert 6 * best_n * best_d == pytest.approx(5.76e23, rel=1e-12)


def test_ratio_of_tokens_to_parameters_at_small_budgets():
    for flops, ratio in ((1e21, 21.6), (1e19, 24.2)):
        n, d = REPLICATION.optimal(flops)
        assert d / n == pytest.approx(ratio, abs=0.06)
    assert pytest.approx(1.3447, abs=5e-5) == HOFFMANN_ROUNDED.G
    assert pytest.approx(0.1196, abs=5e-5) == REPLICATION.G


def test_at_the_optimum_both_parts_fall_alike():
    for law in (HOFFMANN_ROUNDED, HOFFMANN, REPLICATION):
        n, d = law.optimal(1e21)
        assert law.alpha * law.A / n**law.alpha == pytest.approx(law.beta * law.B / d**law.beta, rel=1e-12)
        assert law.predict(n, d) < min(law.predict(n * 1.1, d / 1.1), law.predict(n / 1.1, d * 1.1))


def test_equal_exponents_keep_the_ratio():
    law = ChinchillaLaw(400, 900, 1.7, 0.3, 0.3)
    ratios = [d / n for n, d in map(law.optimal, (1e15, 1e19, 1e23))]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=1e-12)


def test_minicpm_form_of_the_ratio():
    for flops in (1e17, 1e21):
        n, d = HOFFMANN.optimal(flops)
        a, b = HOFFMANN.alpha, HOFFMANN.beta
        assert n / d == pytest.approx(HOFFMANN.G**2 * (flops / 6) ** ((b - a) / (a + b)), rel=1e-12)


def test_fit_recovers_exact_constants_in_seconds():
    start = time.perf_counter()
    law = fit(points())
    assert time.perf_counter() - start < 10
    assert (law.A, law.B, law.E, law.alpha, law.beta) == pytest.approx((20, 60, 1.8, 0.2, 0.25), rel=1e-5)


def test_a_mean_would_stop_where_the_sum_goes_on():
    """The flaw of the first fit: at default tolerances the mean's objective ends far from the truth."""
    from scipy.optimize import minimize

    n, d, loss = logs(points())
    start = np.array([5.0, 5.0, 1.0, 0.5, 0.5])

    def mean(theta):
        value, slope = fitting.objective(theta, n, d, loss, 1e-3)
        return value / len(n), slope / len(n)

    stopped = minimize(mean, start, method="L-BFGS-B", jac=True).x
    assert abs(np.exp(stopped[1]) - 60) > 20
    assert np.exp(fitting.minimise(n, d, loss, 1e-3)[1]) == pytest.approx(60, rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noisy_fit_predicts_beyond_its_points(seed):
    """Coefficients are weakly identified over a decade; predictions four times and more beyond are within 1.5%."""
    law = fit(points(0.002, seed))
    assert law.predict(64e6, 2e9) == pytest.approx(TRUTH.predict(64e6, 2e9), rel=0.015)
    # No worse than the constants the noise was put on.
    n, d, loss = logs(points(0.002, seed))
    theta = np.array([*np.log([law.A, law.B, law.E]), law.alpha, law.beta])
    true = np.array([*np.log([20, 60, 1.8]), 0.2, 0.25])
    assert fitting.objective(theta, n, d, loss, 1e-3)[0] < fitting.objective(true, n, d, loss, 1e-3)[0]


def test_gradient_is_the_objectives():
    n, d, loss = logs(points(0.01))
    theta = np.array([3.1, 4.2, 0.55, 0.21, 0.24])
    value, slope = fitting.objective(theta, n, d, loss, 1e-3)
    numeric = approx_fprime(theta, lambda t: fitting.objective(t, n, d, loss, 1e-3)[0], 1e-8)
    assert slope == pytest.approx(numeric, rel=1e-3, abs=1e-6)
    assert value == pytest.approx(sum(fitting.huber(loss - np.log(fitting.predict(theta[None], n, d)[0]), 1e-3)))


def test_huber_by_hand():
    assert fitting.huber(np.array([0.5, -1.0, 3.0]), 1.0) == pytest.approx([0.125, 0.5, 2.5])


def test_order_of_points_does_not_matter():
    table = points(0.002)
    theta = np.array([3.0, 4.0, 0.6, 0.2, 0.25])
    shuffled = np.random.default_rng(1).permutation(table)
    assert fitting.objective(theta, *logs(table), 1e-3)[0] == pytest.approx(
        fitting.objective(theta, *logs(shuffled), 1e-3)[0], rel=1e-12
    )


def test_an_outlier_has_bounded_pull():
    table = points(0.002)
    clean = fit(table)
    table[7, 2] *= 1.5
    bent = fit(table)
    assert bent.predict(16e6, 5e8) == pytest.approx(clean.predict(16e6, 5e8), rel=0.005)
    n, d, loss = logs(table)
    theta = np.array([3.0, 4.0, 0.6, 0.2, 0.25])
    near = fitting.objective(theta, n, d, loss, 1e-3)[1]
    loss[7] += 100
    assert fitting.objective(theta, n, d, loss, 1e-3)[1] == pytest.approx(near, rel=1e-12)


def test_interval_holds_a_new_run():
    """Over twelve noise draws at least ten 95% intervals hold a new noisy run, and none is vacuous."""
    inside = 0
    for seed in range(12):
        law = fit(points(0.004, seed), refits=100)
        low, high = law.interval(32e6, 1e9)
        run = TRUTH.predict(32e6, 1e9) * np.exp(0.004 * np.random.default_rng(100 + seed).normal())
        inside += low <= run <= high
        assert (high - low) / run < 0.06
    assert inside >= 10


def test_refits_are_reproducible():
    first, second = (fit(points(0.002), refits=20, seed=3).interval(1e7, 1e9) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "bad",
    [
        [(1e6, 1e7, 3.0)] * 4,
        [(1e6, 1e7, 3.0)] * 10,
        [(1e6, 1e7)] * 10,
        np.vstack([points(), [1e6, 1e7, -1.0]]),
        np.vstack([points(), [1e6, 1e7, np.nan]]),
    ],
)
def test_points_that_cannot_be_fitted(bad):
    with pytest.raises(UserError):
        fit(bad)


def test_a_published_law_has_no_interval():
    with pytest.raises(UserError, match="no interval"):
        HOFFMANN.interval(1e9, 1e10)
    assert HOFFMANN.predict(1e9, np.inf) == pytest.approx(HOFFMANN.E + HOFFMANN.A / 1e9**HOFFMANN.alpha)
    assert HOFFMANN_ROUNDED.to_dict() == {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.34, "beta": 0.28}
