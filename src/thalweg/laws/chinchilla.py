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
from thalweg.laws import fitting


@dataclass(frozen=True)
class ChinchillaLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, with the refits that carry its uncertainty.

    Args:
        A: scale of the finite-model part, loss times parameters^alpha.
        B: scale of the finite-data part, loss times tokens^beta.
        E: irreducible loss.
        alpha: exponent of parameters.
        beta: exponent of tokens.
        refits: bootstrap refits [R, 5] as rows (log A, log B, log E, alpha, beta); empty for a published law.
        residuals: log(measured / fitted) of the points fitted, [P]; empty for a published law.
    """

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    refits: np.ndarray = field(default_factory=lambda: np.empty((0, 5)), repr=False, compare=False)
    residuals: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    def predict(self, n: Any, d: Any) -> Any:
        """Loss of n parameters trained on d tokens; arrays broadcast. d may be infinite."""
        return self.E + self.A / np.asarray(n, float) ** self.alpha + self.B / np.asarray(d, float) ** self.beta

    def interval(self, n: float, d: float, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Where a new run's loss at (n, d) should fall: percentiles over refits, each with a residual drawn.

        Residuals are widened by sqrt(P / (P - 5)) for the five constants that were fitted to them.

        Raises:
            UserError: the law was not fitted with bootstrap, and knows no uncertainty.
        """
        if not len(self.refits):
            raise UserError("This law has no refits, so no interval.", fix="Fit it with bootstrap > 0.")
        points = len(self.residuals)
        spread = self.residuals * math.sqrt(points / max(points - 5, 1))
        noise = np.random.default_rng(seed).choice(spread, size=(len(self.refits), 20))
        center = np.log(fitting.predict(self.refits, np.log([n]), np.log([d])))
        low, high = np.exp(np.quantile(center + noise, [(1 - level) / 2, (1 + level) / 2]))
        return float(low), float(high)

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
    bootstrap: int = 0,
    seed: int = 0,
) -> ChinchillaLaw:
    """Fits the law to finished runs.

    Minimises sum_i Huber_delta(log L_i - log L(N_i, D_i)) from some 5000 starts: the published grid, and for
    a grid of exponents the best A, B, E. All are refined a little together, the best are then run to the end
    by L-BFGS with the analytic gradient.

    Args:
        points: rows (parameters, tokens, final loss).
        delta: where the Huber loss turns from square to linear, in log loss.
        bootstrap: refits to points drawn with replacement, for interval(); the replication used 4000, 200
            will do.
        seed: of the bootstrap.

    Raises:
        UserError: fewer than five runs, fewer than three sizes or token counts, or numbers that are not
            positive.
    """
    n, d, loss = _check(points)
    best = fitting.minimise(n, d, loss, delta)
    refits = np.empty((0, 5))
    if bootstrap:
        generator = np.random.default_rng(seed)
        counts = generator.multinomial(len(n), np.full(len(n), 1 / len(n)), size=bootstrap).astype(float)
        refits = fitting.refine(np.tile(best, (bootstrap, 1)), n, d, loss, delta, weights=counts, rounds=60)
    return ChinchillaLaw(
        A=float(np.exp(best[0])),
        B=float(np.exp(best[1])),
        E=float(np.exp(best[2])),
        alpha=float(best[3]),
        beta=float(best[4]),
        refits=refits,
        residuals=loss - np.log(fitting.predict(best[None], n, d)[0]),
    )


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
