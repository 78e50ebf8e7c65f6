"""The annealing law for a line on the screen: where a run ends whose schedule is known, from its losses so far.

A few milliseconds, no random numbers, and silence (None) until the rate has fallen far enough to show what that is
worth; power_curve.forecast() then says where things go if they go on as they do.

How: losses are averaged over stretches. For every pair of a momentum and an exponent on a grid the law is linear in its
other constants, and all pairs are solved at once by least squares of the relative error, reweighted for a Huber loss.
The best pair gives the forecast; all that fit nearly as well, each with the standard error of its own forecast, give
the interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thalweg.laws.annealing_features import averaged, features, warmup_steps
from thalweg.laws.power_curve import Forecast

MOMENTA = (0.98, 0.99, 0.995, 0.999)
_EXPONENTS = np.geomspace(0.05, 2.0, 24)
_FEWEST_STRETCHES = 20
_LEAST_FALL = 0.1  # of the peak: what less than that did to the loss drowns in noise
_LEAST_GROWTH = 3.0  # of S1
_WIDEST = 0.15  # high - low over the forecast
_HUBER = 1.345
_ROUNDS = 4
_T = 2.1


def forecast(
    steps: Sequence[int] | np.ndarray, losses: Sequence[float] | np.ndarray, rates: Sequence[float] | np.ndarray
) -> Forecast | None:
    """Forecasts the loss at the end of a run.

    Args:
        steps: numbers of the steps seen, from 1, increasing.
        losses: training loss of each.
        rates: of every step of the run [T], those to come included.

    Returns:
        A Forecast of the loss after T steps, or None where the curve does not identify the law.
    """
    seen, planned = np.asarray(steps, dtype=int), np.asarray(rates, dtype=float)
    if not len(seen) or seen[-1] > len(planned) or not planned.max() > 0:
        return None
    warmup = warmup_steps(planned)
    places, means = averaged(seen, np.asarray(losses, dtype=float), max(2 * warmup, len(planned) // 50))
    past = planned[warmup : seen[-1]]
    if len(places) < _FEWEST_STRETCHES or not (means > 0).all() or past.min() > (1 - _LEAST_FALL) * past.max():
        return None
    walks, sheds = (np.stack(rows) for rows in zip(*(features(planned, m, warmup) for m in MOMENTA), strict=True))
    if walks[0, places[0] - 1] * _LEAST_GROWTH > walks[0, places[-1] - 1]:
        return None
    everything = np.append(places, len(planned)) - 1
    columns = _columns(walks[0, everything], sheds[:, everything])
    return _fit(columns[:, :-1], columns[:, -1], means, len(planned))


def _columns(walk: np.ndarray, sheds: np.ndarray) -> np.ndarray:
    """What the constants multiply, for every pair of a momentum and an exponent [K, P, 3]; S1 [P], S2 [M, P].

    Scaled by the last place: a constant and a power differ in size no more than they must.
    """
    powers = (walk / walk[-1]) ** -_EXPONENTS[:, None]
    shed = sheds / (np.abs(sheds).max(axis=1, keepdims=True) + 1e-300)
    shape = (len(sheds), len(_EXPONENTS), len(walk))
    parts = (np.ones(1), powers[None], -shed[:, None])
    return np.stack([np.broadcast_to(part, shape) for part in parts], axis=-1).reshape(-1, len(walk), 3)


def _fit(columns: np.ndarray, ends: np.ndarray, measured: np.ndarray, final_step: int) -> Forecast | None:
    """The forecast of the best pair and those like it: columns [K, P, 3] at the losses [P], at the end [K, 3]."""
    relative = columns / measured[:, None]
    weights = np.ones(relative.shape[:2])
    for _ in range(_ROUNDS):
        weighted = relative * weights[..., None]
        curvature = np.swapaxes(weighted, 1, 2) @ relative
        curvature += 1e-10 * np.trace(curvature, axis1=1, axis2=2)[:, None, None] * np.eye(3)
        inverse = np.linalg.inv(curvature)
        solved = (inverse @ weighted.sum(axis=1)[..., None])[..., 0]
        errors = (relative @ solved[..., None])[..., 0] - 1
        sigma = 1.4826 * np.median(np.abs(errors), axis=1, keepdims=True) + 1e-12
        weights = np.minimum(1.0, _HUBER * sigma / np.maximum(np.abs(errors), 1e-300))
    costs = (weights * errors**2).sum(axis=1)
    sound = (solved[:, 0] >= 0) & (solved[:, 1] > 0) & (solved[:, 2] >= 0)
    if not sound.any():
        return None
    best = int(np.argmin(np.where(sound, costs, np.inf)))
    variance = _variance(errors[best], weights[best])
    alike = sound & (costs <= costs[best] + _T**2 * variance)
    centers = (ends * solved).sum(axis=1)
    doubt = _T * np.sqrt(variance * np.einsum("ki,kij,kj->k", ends, inverse, ends))
    value = float(centers[best])
    low, high = float((centers - doubt)[alike].min()), float((centers + doubt)[alike].max())
    if not np.isfinite([low, high]).all() or value <= 0 or high - low > _WIDEST * value:
        return None
    level, scale = float(solved[best, 0]), float(solved[best, 1])
    exponent = float(np.tile(_EXPONENTS, len(MOMENTA))[best])
    return Forecast(value, max(low, 0.0), high, level, scale, exponent, float(final_step))


def _variance(errors: np.ndarray, weights: np.ndarray) -> float:
    """Variance of a stretch's relative error, as in power_curve: Huber's correction, and errors that go together."""
    freedom = max(len(errors) - 5, 1)
    unclipped = max(float((weights >= 1).mean()), 0.25)
    chained = float(errors[1:] @ errors[:-1] / max(errors @ errors, 1e-300))
    chained = min(max(chained, 0.0), 0.9)
    return float((weights**2 * errors**2).sum()) / freedom / unclipped**2 * (1 + chained) / (1 - chained)
