"""Where a loss curve is going: L(s) = E + A * s^-alpha, fitted to the part that has been seen.

Made for a line on the screen: a few milliseconds for thousands of points, no random numbers, and silence
(None) where the curve is too short or too noisy to say anything. It says where the loss would go *if things
went on as they do*: a learning rate that is about to be annealed brings the loss lower than this.

How: the curve is averaged in bins of equal width in log steps, since neighbouring losses say nearly the same
thing. With alpha given the law is linear in E and A, so a grid of 200 exponents is solved at once, by least
squares of the relative error, reweighted for a Huber loss (an outlying bin pulls with limited force). The
best exponent gives the forecast; all exponents that fit nearly as well (within a 95% F-test, widened where
neighbouring bins err together) give the interval, each with the standard error of its own straight-line
forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 40
_EXPONENTS = np.geomspace(0.03, 3.0, 200)
_HUBER = 1.345
_ROUNDS = 6
_FEWEST_STEPS = 40
_FEWEST_BINS = 10
# The seen part must span this factor in steps, and the interval may be at most this share of the forecast.
_SHORTEST_SPAN = 4.0
_WIDEST = 0.3
# About two standard errors, and the same as an F ratio.
_T = 2.1


@dataclass(frozen=True)
class Forecast:
    """The loss to expect at `step`, in the unit of the curve.

    Args:
        value: forecast.
        low: lower end of the 95% interval of the underlying (noise-free) curve.
        high: upper end.
        E: asymptote of the best fit.
        A: scale of the best fit.
        alpha: exponent of the best fit.
        step: the step forecast for.
    """

    value: float
    low: float
    high: float
    E: float
    A: float
    alpha: float
    step: float


def forecast(
    steps: Sequence[float] | np.ndarray,
    losses: Sequence[float] | np.ndarray,
    final_step: float,
    skip: float = 0.05,
) -> Forecast | None:
    """Forecasts the training loss at a later step.

    Args:
        steps: steps seen, positive and increasing (or tokens: any measure of time that starts at zero).
        losses: the loss at each; non-finite ones are left out.
        final_step: where to forecast, in the same measure.
        skip: this share of the seen steps is left out at the start: warm-up and the first fall follow another
            law.

    Returns:
        A Forecast, or None where the curve is too short, does not fall, or leaves the answer open by more
        than 30%.
    """
    x, y = np.asarray(steps, float), np.asarray(losses, float)
    if x.shape != y.shape or x.ndim != 1 or not final_step > 0:
        return None
    usable = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    x, y = x[usable], y[usable]
    if len(x) < _FEWEST_STEPS:
        return None
    late = x >= skip * x[-1]
    x, y, counts = _bins(x[late], y[late])
    if len(x) < _FEWEST_BINS or x[-1] < _SHORTEST_SPAN * x[0]:
        return None
    return _fit(x, y, counts, final_step)


def _bins(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Geometric mean step, mean loss and number of points of each non-empty bin."""
    edges = np.geomspace(x[0], x[-1], _BINS + 1)
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, _BINS - 1)
    counts = np.bincount(place, minlength=_BINS)
    full = counts > 0
    mean_log_x = np.bincount(place, np.log(x), _BINS)[full] / counts[full]
    return np.exp(mean_log_x), np.bincount(place, y, _BINS)[full] / counts[full], counts[full].astype(float)


def _fit(x: np.ndarray, y: np.ndarray, counts: np.ndarray, final_step: float) -> Forecast | None:
    # Steps in units of the last one seen: E + A is then the present loss, whatever the exponent.
    scale = x[-1]
    powers = (x / scale) ** -_EXPONENTS[:, None]
    # The mean of n losses is n times as sure as one.
    base = counts / counts.mean()
    weights = np.broadcast_to(base, powers.shape)
    for _ in range(_ROUNDS):
        E, A, spread = _solve(powers, y, weights)
        errors = (E[:, None] + A[:, None] * powers) / y - 1
        sigma = 1.4826 * np.median(np.abs(errors) * np.sqrt(base), axis=1, keepdims=True) + 1e-12
        weights = base * np.minimum(1.0, _HUBER * sigma / np.maximum(np.abs(errors) * np.sqrt(base), 1e-300))
    costs = (weights * errors**2).sum(axis=1)
    best = int(np.argmin(costs))
    variance = _variance(errors[best], weights[best], base)
    alike = (costs <= costs[best] + _T**2 * variance) & (A > 0)
    if A[best] <= 0 or not alike.any():
        return None
    ahead = (final_step / scale) ** -_EXPONENTS
    centers = E + A * ahead
    row = np.stack([np.ones_like(ahead), ahead], axis=1)
    doubt = _T * np.sqrt(variance * np.einsum("ki,kij,kj->k", row, spread, row))
    low, high = float((centers - doubt)[alike].min()), float((centers + doubt)[alike].max())
    loss = float(centers[best])
    if not np.isfinite([loss, low, high]).all() or loss <= 0 or high - low > _WIDEST * loss:
        return None
    alpha = float(_EXPONENTS[best])
    return Forecast(loss, max(low, 0.0), high, float(E[best]), float(A[best] * scale**alpha), alpha, float(final_step))


def _solve(powers: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E, A [K] of least weighted relative error for each exponent, E no less than 0; inverse curvature [K, 2,
    2]."""
    w = weights / y**2
    s, sp, spp = w.sum(axis=1), (w * powers).sum(axis=1), (w * powers**2).sum(axis=1)
    t, tp = (w * y).sum(axis=1), (w * powers * y).sum(axis=1)
    determinant = np.maximum(s * spp - sp**2, 1e-12 * s * spp)
    E = (spp * t - sp * tp) / determinant
    A = (s * tp - sp * t) / determinant
    floored = E < 0
    E, A = np.where(floored, 0.0, E), np.where(floored, tp / spp, A)
    inverse = np.stack([np.stack([spp, -sp], -1), np.stack([-sp, s], -1)], -2) / determinant[:, None, None]
    return E, A, inverse


def _variance(errors: np.ndarray, weights: np.ndarray, base: np.ndarray) -> float:
    """Variance of a bin's relative error, for Huber weights and for neighbours that err together.

    Huber's own correction (clipped squares over the squared share of unclipped bins) undoes that clipping
    makes the errors look small; (1 + r) / (1 - r), with the lag-one correlation r, is the variance of a mean
    of chained errors.
    """
    freedom = len(errors) - 3
    unclipped = float((weights >= base).mean())
    clipped_squares = float((weights**2 / base * errors**2).sum())
    correlation = float(errors[1:] @ errors[:-1] / max(errors @ errors, 1e-300))
    correlation = min(max(correlation, 0.0), 0.9)
    return clipped_squares / freedom / max(unclipped, 0.25) ** 2 * (1 + correlation) / (1 - correlation)
