"""The optimizer behind the Chinchilla law: many starts at once, then L-BFGS on the best.

Constants are theta = (a, b, e, alpha, beta) with A = exp(a), B = exp(b), E = exp(e), so that none can turn
negative or overflow on the way; a prediction is a log-sum-exp of three straight lines,

    log L = LSE(a - alpha log N, b - beta log D, e),

whose gradient is the softmax of the three. Everything takes a stack of thetas [S, 5] and points [P], so
thousands of starts and refits cost one pass of array arithmetic each round.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.optimize import minimize

# Exponents outside this range predict nonsense, and a law with a zero exponent has two constants for one
# thing.
LARGEST_EXPONENT = 4.0
_LOW = np.array([-60.0, -60.0, -30.0, 1e-4, 1e-4])
_HIGH = np.array([120.0, 120.0, 10.0, LARGEST_EXPONENT, LARGEST_EXPONENT])
BOUNDS = _LOW, _HIGH
_FINALISTS = 12


def terms(theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The three lines under the log-sum-exp [3, S, P], for thetas [S, 5], log parameters and log tokens
    [P]."""
    a, b, e, alpha, beta = (theta[:, i, None] for i in range(5))
    return np.stack([a - alpha * n, b - beta * d, np.broadcast_to(e, (len(theta), len(n)))])


def predict(theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Loss [S, P] in the unit of the points."""
    return np.exp(terms(theta, n, d)).sum(axis=0)


def _residuals(theta: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log measured - log predicted [S, P], and the softmax of the three lines [3, S, P]."""
    lines = terms(theta, n, d)
    top = lines.max(axis=0)
    shares = np.exp(lines - top)
    total = shares.sum(axis=0)
    return loss - top - np.log(total), shares / total


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """r^2 / 2 within delta, delta (|r| - delta / 2) beyond."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def objective(
    theta: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray, delta: float
) -> tuple[float, np.ndarray]:
    """Sum of Huber terms at one theta [5], and its gradient [5]. Arguments in logs."""
    residuals, shares = (values[..., 0, :] for values in _residuals(theta[None], n, d, loss))
    pull = -np.clip(residuals, -delta, delta)
    slopes = np.stack([shares[0], shares[1], shares[2], -shares[0] * n, -shares[1] * d])
    return float(huber(residuals, delta).sum()), slopes @ pull


def refine(
    theta: np.ndarray,
    n: np.ndarray,
    d: np.ndarray,
    loss: np.ndarray,
    delta: float,
    rounds: int = 20,
) -> np.ndarray:
    """Levenberg-Marquardt on reweighted squares, all starts [S, 5] at once, each with its own damping.

    Args:
        loss: log measurements, [P] for all or [S, P].
        rounds: steps tried; one that does not improve is undone and damped tenfold.
    """
    theta = np.clip(theta, _LOW, _HIGH)
    damping = np.full(len(theta), 1e-2)
    residuals, shares = _residuals(theta, n, d, loss)
    cost = huber(residuals, delta).sum(axis=1)
    for _ in range(rounds):
        # The square that touches the Huber loss at the present residual: weight 1 inside delta, delta / |r|
        # outside.
        pull = np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))
        slopes = np.stack([shares[0], shares[1], shares[2], -shares[0] * n, -shares[1] * d], axis=-1)
        weighted = slopes * pull[..., None]
        curvature = np.swapaxes(weighted, 1, 2) @ slopes
        downhill = (weighted * residuals[..., None]).sum(axis=1)
        diagonal = np.einsum("sii->si", curvature)
        diagonal += damping[:, None] * diagonal + 1e-12
        trial = np.clip(theta + np.linalg.solve(curvature, downhill[..., None])[..., 0], _LOW, _HIGH)
        new_residuals, new_shares = _residuals(trial, n, d, loss)
        new_cost = huber(new_residuals, delta).sum(axis=1)
        better = new_cost < cost
        theta = np.where(better[:, None], trial, theta)
        residuals = np.where(better[:, None], new_residuals, residuals)
        shares = np.where(better[:, None], new_shares, shares)
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping / 5, damping * 10), 1e-12, 1e12)
    return theta


def starts(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The published grid of 4500 starts, and 400 more with A, B, E solved for a grid of exponents.

    With the exponents given the law is linear in A, B, E: least squares of the relative error, negatives
    floored.
    """
    exponents, intercepts = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
    floors = (-1.0, -0.5, 0.0, 0.5, 1.0)
    grid = np.array(list(itertools.product(intercepts, intercepts, floors, exponents, exponents)))
    fine = np.geomspace(0.03, 2.0, 20)
    alpha, beta = (axis.ravel() for axis in np.meshgrid(fine, fine))
    # Centred, or n^alpha runs over hundreds of orders and the equations lose their digits.
    n_center, d_center, measured = n.mean(), d.mean(), np.exp(loss)
    columns = np.stack(
        [
            np.exp(-alpha[:, None] * (n - n_center)) / measured,
            np.exp(-beta[:, None] * (d - d_center)) / measured,
            np.broadcast_to(1 / measured, (len(alpha), len(n))),
        ],
        axis=-1,
    )
    solved = (np.linalg.pinv(columns) @ np.ones((len(n), 1)))[..., 0]
    a, b, e = np.log(np.maximum(solved, 1e-3 * measured.min())).T
    linear = np.stack([a + alpha * n_center, b + beta * d_center, e, alpha, beta], axis=1)
    return np.concatenate([grid, linear])


def minimise(n: np.ndarray, d: np.ndarray, loss: np.ndarray, delta: float) -> np.ndarray:
    """The theta [5] of least summed Huber loss. Arguments in logs, [P] each."""
    first = starts(n, d, loss)
    order = np.argsort(huber(_residuals(np.clip(first, _LOW, _HIGH), n, d, loss)[0], delta).sum(axis=1))
    # The linear solutions start near the valley's floor; of the rough grid the better tenth is company
    # enough.
    kept = np.concatenate([first[order[: len(first) // 10]], first[-400:]])
    kept = refine(kept, n, d, loss, delta)
    costs = huber(_residuals(kept, n, d, loss)[0], delta).sum(axis=1)
    finalists = kept[np.argsort(costs)[:_FINALISTS]]
    bounds = list(zip(_LOW, _HIGH, strict=True))
    options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 5000, "maxfun": 10000}
    results = [
        minimize(objective, start, (n, d, loss, delta), method="L-BFGS-B", jac=True, bounds=bounds, options=options)
        for start in finalists
    ]
    ends = np.concatenate([finalists, np.stack([result.x for result in results])])
    # A last joint refinement: L-BFGS stops early in the long flat valley of nearly equal fits.
    ends = refine(ends, n, d, loss, delta, rounds=40)
    return ends[np.argmin(huber(_residuals(ends, n, d, loss)[0], delta).sum(axis=1))]
