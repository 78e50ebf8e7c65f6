"""Fits any law to measurements: Huber on the log, many starts at once, and intervals by refitting simulated runs.

A law is a function from constants theta [S, k] to logarithms of what it predicts at the P measured points [S, P]; a
whole stack of thetas costs one pass of array arithmetic, so hundreds of starts or refits go through every round
together.

    theta = argmin sum_i Huber_delta(log measured_i - log predicted_i)

*Uncertainty.* With few points, drawing points with replacement leaves laws that nothing determines. So measurements are
simulated instead: from the fitted law, with normal errors whose size is itself drawn (sigma sqrt(nu / chi2_nu), with
nu = P - k), and the law is fitted to each. Percentiles of what the refits predict, each with one more error, are where
a new run should fall; with one point to spare that is as wide as Student's t would make it. sigma comes from the
residuals, those beyond three times a typical one cut, or is given where runs with other seeds have shown it.

The optimizer is the one of `fitting`, for any law: slopes are central differences, whose error only slows it down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thalweg.errors import UserError
from thalweg.laws.fitting import huber

Law = Callable[[np.ndarray], np.ndarray]

_STEP = 1e-6
_FINALISTS = 12
# Nothing has gained by this share for so many rounds, over which the damping has grown by ten to that power.
_SMALLEST_GAIN, _PATIENCE = 1e-9, 8
_CUT = 3 * 1.4826


@dataclass(frozen=True)
class RobustFit:
    """The constants of a law, and what else they might have been.

    Args:
        theta: best constants [k].
        refits: constants fitted to simulated measurements [R, k].
        errors: size of the simulated errors of each refit [R], in log.
        residuals: log(measured / fitted) [P].
        sigma: standard deviation of one measurement's log.
    """

    theta: np.ndarray
    refits: np.ndarray
    errors: np.ndarray
    residuals: np.ndarray
    sigma: float

    def interval(self, centers: np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Where a new run should fall.

        Args:
            centers: log of what each refit predicts for it [R].
            level: share of new runs inside.
            seed: of the errors added.
        """
        return new_run(centers, self.errors, level, seed)


def new_run(centers: np.ndarray, errors: np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Where a new run should fall: what each refit predicts for it (log, [R]) with errors of its size [R] added."""
    noise = np.random.default_rng(seed).normal(size=(len(centers), 20)) * errors[:, None]
    low, high = np.exp(between(centers[:, None] + noise, level))
    return float(low), float(high)


def between(values: np.ndarray, level: float) -> tuple[float, float]:
    """The middle `level` of some values. Raises UserError where there are none: nothing was refitted."""
    if not np.size(values):
        raise UserError("This law has no refits, so no interval.", fix="Fit it with refits > 0.")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def fit(
    law: Law,
    measured: np.ndarray,
    starts: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    delta: float = 1e-3,
    spread: float | None = None,
    refits: int = 200,
    seed: int = 0,
) -> RobustFit:
    """Fits a law.

    Args:
        law: log predictions [S, P] of constants [S, k].
        measured: log of the measurements [P]; more of them than constants unless `spread` is given.
        starts: constants to start from [S, k].
        bounds: lowest and highest constants, [k] each.
        delta: where the Huber loss turns from square to linear, in log.
        spread: standard deviation of log measurements where it is known; None estimates it.
        refits: number of refits.
        seed: of the simulation.
    """
    theta = minimise(law, measured, starts, bounds, delta)
    fitted = law(theta[None])[0]
    simulated, errors, sigma = simulate(fitted, measured, len(theta), spread, refits, seed)
    others = refine(law, simulated, np.tile(theta, (refits, 1)), bounds, delta, rounds=60)
    return RobustFit(theta, others, errors, measured - fitted, sigma)


def simulate(
    fitted: np.ndarray, measured: np.ndarray, constants: int, spread: float | None, refits: int, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Measurements as the fitted law might have given them.

    Args:
        fitted, measured: log predictions and log measurements [P].
        constants: that were fitted.
        spread, refits, seed: as for `fit`.

    Returns:
        The simulated log measurements [R, P], the size of the errors of each [R], and sigma.
    """
    spare = len(measured) - constants
    sigma = error_size(measured - fitted, spare) if spread is None else spread
    generator = np.random.default_rng(seed)
    errors = np.full(refits, sigma)
    if spread is None:
        errors = sigma * np.sqrt(spare / generator.chisquare(spare, size=refits))
    return fitted + errors[:, None] * generator.normal(size=(refits, len(measured))), errors, float(sigma)


def error_size(residuals: np.ndarray, spare: int) -> float:
    """Standard deviation of one measurement, from the residuals of a fit with `spare` points more than constants.

    A fit with absolute values goes exactly through as many points as it has constants: only the largest `spare`
    residuals tell what is typical.
    """
    sizes = np.sort(np.abs(residuals))
    cut = _CUT * float(np.median(sizes[-spare:]))
    return float(np.sqrt((np.minimum(sizes, cut) ** 2).sum() / spare))


def minimise(
    law: Law, measured: np.ndarray, starts: np.ndarray, bounds: tuple[np.ndarray, np.ndarray], delta: float
) -> np.ndarray:
    """The theta [k] of least summed Huber loss from many starts [S, k]: all a little, the best to the end."""

    def costs(theta: np.ndarray) -> np.ndarray:
        return huber(measured - law(theta), delta).sum(axis=1)

    # Coarse first: within delta of nothing, the Huber loss is a sum of absolute values with many corners.
    near = refine(law, measured, starts, bounds, max(delta, 0.1), rounds=20)
    finalists = near[np.argsort(costs(near))[:_FINALISTS]]
    for narrower in (10 * delta, delta):
        finalists = refine(law, measured, finalists, bounds, narrower, rounds=150)
    return finalists[np.argmin(costs(finalists))]


def refine(
    law: Law,
    measured: np.ndarray,
    theta: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    delta: float,
    rounds: int,
) -> np.ndarray:
    """Levenberg-Marquardt on reweighted squares, all thetas [S, k] at once, each with its own damping.

    Args:
        measured: log measurements, [P] for all or [S, P].
        rounds: steps tried at most; one that does not improve is undone and damped tenfold.
    """
    low, high = bounds
    theta = np.clip(theta, low, high)
    damping = np.full(len(theta), 1e-2)
    residuals = measured - law(theta)
    cost = huber(residuals, delta).sum(axis=1)
    idle = 0
    for _ in range(rounds):
        slopes = _slopes(law, theta)
        weighted = slopes * np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))[..., None]
        curvature = np.swapaxes(weighted, 1, 2) @ slopes
        downhill = (weighted * residuals[..., None]).sum(axis=1)
        # A constant that would leave its bounds stands still, so that it does not spoil the step of the others.
        still = ((theta <= low) & (downhill < 0)) | ((theta >= high) & (downhill > 0))
        downhill[still] = 0.0
        curvature = np.where(still[:, :, None] | still[:, None, :], 0.0, curvature)
        diagonal = np.einsum("sii->si", curvature)
        diagonal += damping[:, None] * diagonal + 1e-14
        trial = np.clip(theta + np.linalg.solve(curvature, downhill[..., None])[..., 0], low, high)
        new_residuals = measured - law(trial)
        new_cost = huber(new_residuals, delta).sum(axis=1)
        better = new_cost < cost
        idle = 0 if (new_cost < cost * (1 - _SMALLEST_GAIN)).any() else idle + 1
        theta = np.where(better[:, None], trial, theta)
        residuals = np.where(better[:, None], new_residuals, residuals)
        cost = np.where(better, new_cost, cost)
        if idle == _PATIENCE:
            break
        damping = np.clip(np.where(better, damping / 5, damping * 10), 1e-12, 1e12)
    return theta


def _slopes(law: Law, theta: np.ndarray) -> np.ndarray:
    """Derivatives of the log predictions [S, P, k]."""
    stacks, constants = theta.shape
    step = _STEP * (1.0 + np.abs(theta))
    moves = step[:, None, :] * np.eye(constants)
    above, below = (law((theta[:, None, :] + sign * moves).reshape(-1, constants)) for sign in (1.0, -1.0))
    slopes = ((above - below) / (2 * step.reshape(-1, 1))).reshape(stacks, constants, above.shape[1])
    return np.swapaxes(slopes, 1, 2)
