"""Final loss as a function of model size and tokens: L(N, D) = E + A / N^alpha + B / D^beta.

The loss that no model can go below, plus a part for a finite model, plus a part for finite data. Five
constants are fitted to finished runs, in log space and robustly; the least loss at C = 6 N D floating-point
operations then gives the best size and the best number of tokens.

Source: Training Compute-Optimal Large Language Models (Hoffmann et al. 2022, arXiv:2203.15556), fitted as in
Chinchilla Scaling: A replication attempt (Besiroglu et al. 2024, arXiv:2404.10102): the Huber terms are
*summed*. Their mean is so small that an optimizer's default tolerance stops it where it started, which is
what bent the first fit.

Units: N parameters by one convention (here non-embedding), D tokens seen, L nats a token (or any other unit,
kept). Data must be *final* losses of runs whose schedule ended at their D; a loss read off the middle of a
run is too high.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thalweg.errors import UserError
from thalweg.laws import fitting, robust


@dataclass(frozen=True)
class ChinchillaLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, with the refits that carry its uncertainty.

    Args:
        A: scale of the finite-model part, loss times parameters^alpha.
        B: scale of the finite-data part, loss times tokens^beta.
        E: irreducible loss.
        alpha: exponent of parameters.
        beta: exponent of tokens.
        refits: fits to simulated runs [R, 5] as rows (log A, log B, log E, alpha, beta); empty for a published law.
        errors: standard deviation of log loss in each simulation [R].
        sigma: standard deviation of one run's log loss; 0 for a published law, which does not say.
    """

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    refits: np.ndarray = field(default_factory=lambda: np.empty((0, 5)), repr=False, compare=False)
    errors: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    sigma: float = field(default=0.0, compare=False)

    def predict(self, n: Any, d: Any) -> Any:
        """Loss of n parameters trained on d tokens; arrays broadcast. d may be infinite."""
        return self.E + self.A / np.asarray(n, float) ** self.alpha + self.B / np.asarray(d, float) ** self.beta

    def interval(self, n: float, d: float, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Where a new run's loss at (n, d) should fall: percentiles over refits, each with an error of its size.

        Raises:
            UserError: the law was not fitted with refits, and knows no uncertainty.
        """
        if not len(self.refits):
            raise UserError("This law has no refits, so no interval.", fix="Fit it with refits > 0.")
        centers = np.log(fitting.predict(self.refits, np.log([n]), np.log([d])))[:, 0]
        return robust.new_run(centers, self.errors, level, seed)

    @property
    def G(self) -> float:
        """(alpha A / (beta B))^(1 / (alpha + beta)): the ratio that sets the best size."""
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))

    def optimal(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of least loss at flops = 6 * parameters * tokens."""
        scale = flops / 6
        parameters = self.G * scale ** (self.beta / (self.alpha + self.beta))
        return parameters, scale / parameters

    def to_dict(self) -> dict[str, float]:
        """The five constants, as JSON can hold them."""
        return {name: float(getattr(self, name)) for name in ("A", "B", "E", "alpha", "beta")}


# Rounded as printed, and as the authors computed with (their best sizes differ by a quarter); and the
# replication's.
HOFFMANN_ROUNDED = ChinchillaLaw(406.4, 410.7, 1.69, 0.34, 0.28)
HOFFMANN = ChinchillaLaw(math.exp(6.00734), math.exp(6.01792), math.exp(0.526723), 0.339171, 0.284908)
REPLICATION = ChinchillaLaw(482.01, 2085.43, 1.8169, 0.3478, 0.3658)


def fit(
    points: Sequence[tuple[float, float, float]] | np.ndarray,
    delta: float = 1e-3,
    refits: int = 0,
    seed: int = 0,
) -> ChinchillaLaw:
    """Fits the law to finished runs.

    Minimises sum_i Huber_delta(log L_i - log L(N_i, D_i)) from some 5000 starts: the published grid, and for
    a grid of exponents the best A, B, E. All are refined a little together, the best are then run to the end
    by L-BFGS with the analytic gradient.

    Args:
        points: rows (parameters, tokens, final loss).
        delta: where the Huber loss turns from square to linear, in log loss.
        refits: fits to simulated runs, for interval(), see `robust`; 200 will do. Points drawn with replacement,
            as the replication had it, leave small grids undetermined: of 30 intervals of 95% 22 held.
        seed: of the simulation.

    Raises:
        UserError: fewer than five runs, fewer than three sizes or token counts, or numbers that are not
            positive.
    """
    n, d, loss = _check(points)
    best = fitting.minimise(n, d, loss, delta)
    fitted = np.log(fitting.predict(best[None], n, d)[0])
    others, errors, sigma = np.empty((0, 5)), np.empty(0), 0.0
    if len(n) > len(best):  # five runs are met exactly and tell no error
        simulated, errors, sigma = robust.simulate(fitted, loss, len(best), None, refits, seed)
        others = fitting.refine(np.tile(best, (refits, 1)), n, d, simulated, delta, rounds=60)
    return from_theta(best, others, errors, sigma)


def from_theta(theta: np.ndarray, refits: np.ndarray, errors: np.ndarray, sigma: float) -> ChinchillaLaw:
    """The law of constants (log A, log B, log E, alpha, beta), with what else they might have been."""
    A, B, E = np.exp(theta[:3]).tolist()
    return ChinchillaLaw(A, B, E, float(theta[3]), float(theta[4]), refits, errors, sigma)


def _check(points: Sequence[tuple[float, float, float]] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log parameters, log tokens and log loss, each [P]."""
    table = np.asarray(points, dtype=float)
    if table.ndim != 2 or table.shape[1] != 3:
        raise UserError("Points must be rows of (parameters, tokens, final loss).")
    if not (np.isfinite(table).all() and (table > 0).all()):
        raise UserError("Points must be positive and finite.", fix="Leave out runs that diverged.")
    sizes, lengths = len(np.unique(table[:, 0])), len(np.unique(table[:, 1]))
    if len(table) < 5 or sizes < 3 or lengths < 3:
        raise UserError(
            f"Five constants need at least 5 runs over 3 sizes and 3 token counts; there are {len(table)} runs, "
            f"{sizes} sizes, {lengths} token counts.",
            fix="Train more runs.",
        )
    log_n, log_d, log_loss = np.log(table).T
    return log_n, log_d, log_loss
