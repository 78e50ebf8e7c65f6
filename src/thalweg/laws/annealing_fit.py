"""The optimizer behind the annealing law: linear starts on a grid of exponents, the published starts, then the end.

Constants are theta = (L0, A, alpha, C) of L = L0 + A * S1^-alpha - C * S2, all at least 0. With the exponent given the
law is linear in the other three: least squares of the relative error, reweighted for a Huber loss, solves a whole grid
of exponents at once. That is where good starts come from, and all that a line on the screen has time for.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.optimize import minimize

from thalweg.laws.fitting import huber

EXPONENTS = np.geomspace(0.03, 3.0, 40)
LOW, HIGH = np.zeros(4), np.array([np.inf, np.inf, 10.0, np.inf])  # no curve falls as the tenth power
# The published grid is meant for rates whose longest sum is 4: other units of the rate are brought to this one.
GRID_WALK = 4.0
GRID = np.array(list(itertools.product((0.1, 2.1), (1.0, 11.5, 22.0), (0.0, 0.4, 0.8), (1.0, 11.5, 22.0))))
_SMALLEST = 1e-10  # no loss falls to zero; a trial's constants may say so
_FINALISTS = 6


def predict(theta: np.ndarray, walk: np.ndarray, annealed: np.ndarray) -> np.ndarray:
    """Loss [S, P] for constants [S, 4] at S1 and S2 [P]."""
    level, scale, exponent, worth = (theta[:, column, None] for column in range(4))
    return np.maximum(level + scale * walk**-exponent - worth * annealed, _SMALLEST)


def slopes(theta: np.ndarray, walk: np.ndarray, annealed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log of the loss [S, P] and its derivatives [S, P, 4]."""
    powers = walk ** -theta[:, 2, None]
    loss = predict(theta, walk, annealed)
    columns = (np.ones_like(loss), powers, -theta[:, 1, None] * powers * np.log(walk), -np.ones_like(loss) * annealed)
    return np.log(loss), np.stack(columns, axis=-1) / loss[..., None]


def objective(
    theta: np.ndarray, walk: np.ndarray, annealed: np.ndarray, loss: np.ndarray, delta: float
) -> tuple[float, np.ndarray]:
    """Sum of Huber terms at one theta [4], and its gradient; `loss` in logs."""
    fitted, gradients = slopes(theta[None], walk, annealed)
    residuals = loss - fitted[0]
    return float(huber(residuals, delta).sum()), -np.clip(residuals, -delta, delta) @ gradients[0]


def linear_starts(
    walk: np.ndarray, annealed: np.ndarray, loss: np.ndarray, delta: float, rounds: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """The best theta for each of EXPONENTS [K, 4], negatives set to 0, and its summed Huber loss [K]; `loss` in logs.

    A column that is zero everywhere (no annealing) gets the constant 0.
    """
    measured = np.exp(loss)
    powers = (walk / walk.max()) ** -EXPONENTS[:, None]
    size = max(float(np.abs(annealed).max()), 1e-300)
    columns = np.stack([np.ones_like(powers), powers, np.broadcast_to(-annealed / size, powers.shape)], axis=-1)
    relative = columns / measured[:, None]
    weights = np.ones_like(powers)
    for _ in range(rounds):
        weighted = relative * weights[..., None]
        curvature = np.swapaxes(weighted, 1, 2) @ relative
        # A hair of damping: nearly equal columns must not make it fail, and it moves nothing that is determined.
        curvature += 1e-10 * np.trace(curvature, axis1=1, axis2=2)[:, None, None] * np.eye(3)
        solved = np.linalg.solve(curvature, weighted.sum(axis=1)[..., None])[..., 0]
        errors = np.abs((relative @ solved[..., None])[..., 0] - 1)
        weights = np.minimum(1.0, delta / np.maximum(errors, 1e-300))
    level, scale, worth = np.maximum(solved, 0.0).T
    theta = np.stack([level, scale * walk.max() ** EXPONENTS, EXPONENTS, worth / size], axis=1)
    return theta, huber(loss - np.log(predict(theta, walk, annealed)), delta).sum(axis=1)


def quick(walk: np.ndarray, annealed: np.ndarray, loss: np.ndarray, delta: float) -> np.ndarray:
    """The theta [4] that the linear starts lead to; `loss` in logs, S1 and S2 [P] in any one unit of the rate."""
    unit = GRID_WALK / walk.max()
    points = (walk * unit, annealed * unit, loss, delta)
    starts, costs = linear_starts(*points)
    return _in_unit(_best(starts[np.argsort(costs)[:_FINALISTS]], *points), 1 / unit)


def minimise(walk: np.ndarray, annealed: np.ndarray, loss: np.ndarray, delta: float) -> np.ndarray:
    """The theta [4] of least summed Huber loss, from the published starts and the linear ones.

    Arguments as for quick(). All starts are refined a little together, the best are run to the end by L-BFGS-B as
    published, and refined once more: the published tolerance is absolute where the objective is as small as here, and
    stops short in a flat valley.
    """
    unit = GRID_WALK / walk.max()
    points = (walk * unit, annealed * unit, loss, delta)
    starts, costs = linear_starts(*points)
    near = refine(np.concatenate([GRID, starts[np.argsort(costs)[:_FINALISTS]]]), *points, rounds=40)
    finalists = near[np.argsort(summed(near, *points))[:_FINALISTS]]
    bounds = list(zip(LOW, HIGH, strict=True))
    options = {"maxiter": 100_000, "ftol": 1e-9, "gtol": 1e-6}
    ends = [
        minimize(objective, start, points, method="L-BFGS-B", jac=True, bounds=bounds, options=options).x
        for start in finalists
    ]
    return _in_unit(_best(np.concatenate([finalists, np.stack(ends)]), *points), 1 / unit)


def refits(
    theta: np.ndarray, walk: np.ndarray, annealed: np.ndarray, simulated: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """The law fitted to each row of simulated log losses [R, P], from one theta [4]: thetas [R, 4], objectives [R]."""
    unit = GRID_WALK / walk.max()
    points = (walk * unit, annealed * unit, simulated, delta)
    found = refine(_in_unit(np.tile(theta, (len(simulated), 1)), unit), *points, rounds=40)
    return _in_unit(found, 1 / unit), summed(found, *points)


def summed(theta: np.ndarray, walk: np.ndarray, annealed: np.ndarray, loss: np.ndarray, delta: float) -> np.ndarray:
    """The objective of each theta [S]; `loss` in logs, [P] or [S, P]."""
    return huber(loss - np.log(predict(theta, walk, annealed)), delta).sum(axis=-1)


def _best(theta: np.ndarray, walk: np.ndarray, annealed: np.ndarray, loss: np.ndarray, delta: float) -> np.ndarray:
    refined = refine(theta, walk, annealed, loss, delta, rounds=200)
    return refined[np.argmin(summed(refined, walk, annealed, loss, delta))]


def _in_unit(theta: np.ndarray, unit: float) -> np.ndarray:
    """The same law for rates multiplied by `unit`."""
    level, scale, exponent, worth = theta.T
    return np.stack([level, scale * unit**exponent, exponent, worth / unit], axis=-1)


def refine(
    theta: np.ndarray, walk: np.ndarray, annealed: np.ndarray, loss: np.ndarray, delta: float, rounds: int
) -> np.ndarray:
    """Levenberg-Marquardt on reweighted squares, all thetas [S, 4] at once; `loss` in logs, [P] or [S, P]."""
    damping = np.full(len(theta), 1e-3)
    fitted, gradients = slopes(theta, walk, annealed)
    cost = huber(loss - fitted, delta).sum(axis=1)
    for _ in range(rounds):
        residuals = loss - fitted
        pull = np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))
        weighted = gradients * pull[..., None]
        curvature = np.swapaxes(weighted, 1, 2) @ gradients
        downhill = (weighted * residuals[..., None]).sum(axis=1)
        # A constant that would leave its bound stands still, so that it does not spoil the step of the others.
        still = (theta <= LOW) & (downhill < 0)
        downhill[still] = 0.0
        curvature = np.where(still[:, :, None] | still[:, None, :], 0.0, curvature)
        diagonal = np.einsum("sii->si", curvature)
        diagonal += damping[:, None] * diagonal + 1e-14
        trial = np.clip(theta + np.linalg.solve(curvature, downhill[..., None])[..., 0], LOW, HIGH)
        new_fitted, new_gradients = slopes(trial, walk, annealed)
        new_cost = huber(loss - new_fitted, delta).sum(axis=1)
        better = new_cost < cost
        theta, cost = np.where(better[:, None], trial, theta), np.where(better, new_cost, cost)
        fitted = np.where(better[:, None], new_fitted, fitted)
        gradients = np.where(better[:, None, None], new_gradients, gradients)
        damping = np.clip(np.where(better, damping / 5, damping * 10), 1e-12, 1e12)
    return theta
