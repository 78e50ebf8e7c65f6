"""A loss that levels off along one quantity: L(x) = E + A / x^alpha, and what is left at infinite x.

x may be parameters, members of an ensemble, tokens, or anything else of which more is better. E is where the loss would
end if x cost nothing; judged by it, a recipe is compared in the limit and not at the size that happened to be trained.

Fitted in log loss by `robust`. Three constants on four points leave one to spare: E to three digits is then an
illusion, so E always comes with its interval, and a fit that leaves E open is refused.

Units: any for x (kept), nats a token or any other for L (kept).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thalweg.errors import UserError
from thalweg.laws import robust

_LOW, _HIGH = np.array([-60.0, 1e-3, -30.0]), np.array([60.0, 8.0, 10.0])
# The interval of E may be at most this share of the lowest loss that was measured.
_WIDEST = 0.3
# An E below this share of the lowest loss is the best that a floor at zero can do for points that do not bend.
_NO_FLOOR = 0.01
# A mean that stands this share of the whole fall above the lowest one before it is no noise about a falling law.
_RISE = 0.25
_FEWEST = 4


@dataclass(frozen=True)
class AsymptoteLaw:
    """L(x) = E + A / x^alpha.

    Args:
        A: scale, loss times x^alpha.
        alpha: exponent of x.
        E: the loss at infinite x.
        fit: how it was fitted, with constants (log A in units of `center`, alpha, log E); None for a published law.
        center: x in whose units the fit was made.
    """

    A: float
    alpha: float
    E: float
    fit: robust.RobustFit | None = field(default=None, repr=False, compare=False)
    center: float = field(default=1.0, repr=False, compare=False)

    def predict(self, x: Any) -> Any:
        """Loss at x; arrays allowed, x may be infinite."""
        return self.E + self.A * np.asarray(x, float) ** -self.alpha

    def interval(self, x: float, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Where a new run's loss at x should fall.

        Raises:
            UserError: the law is a published one, and knows no uncertainty.
        """
        found = self._fitted()
        return found.interval(log_loss(found.refits, np.log([x / self.center]))[:, 0], level, seed)

    def asymptote_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Where E should be. Raises UserError for a published law."""
        return robust.between(np.exp(self._fitted().refits[:, 2]), level)

    def inverse(self, loss: float) -> float:
        """The x at which the law reaches a loss.

        Raises:
            UserError: the loss is at or below E, which no x reaches.
        """
        if not loss > self.E:
            raise UserError(f"No amount reaches a loss of {loss:g}: the law ends at {self.E:g}.")
        return (self.A / (loss - self.E)) ** (1 / self.alpha)

    def to_dict(self) -> dict[str, float]:
        """The three constants, as JSON can hold them."""
        return {"A": float(self.A), "alpha": float(self.alpha), "E": float(self.E)}

    def _fitted(self) -> robust.RobustFit:
        if self.fit is None:
            raise UserError("This law was not fitted here, so it has no interval.", fix="Fit it to runs of your own.")
        return self.fit


def fit(
    points: Sequence[tuple[float, float]] | np.ndarray,
    delta: float = 1e-3,
    spread: float | None = None,
    refits: int = 200,
    seed: int = 0,
) -> AsymptoteLaw:
    """Fits the law to the losses of finished runs.

    Args:
        points: rows (x, loss); several rows of one x are runs with other seeds.
        delta: where the Huber loss turns from square to linear, in log loss.
        spread: standard deviation of log loss over seeds where it is known; None takes it from the residuals.
        refits: simulated refits, for the intervals.
        seed: of the simulation.

    Raises:
        UserError: fewer than four x, numbers that are not positive, losses that do not fall, or E left open.
    """
    x, loss = _check(points)
    center = float(np.exp(np.log(x).mean()))
    u = np.log(x / center)
    law = from_refits(
        robust.fit(
            lambda t: log_loss(t, u), np.log(loss), _starts(u, loss), (_LOW, _HIGH), delta, spread, refits, seed
        ),
        center,
    )
    if _NO_FLOOR * loss.min() > law.E:
        raise UserError(
            "These runs show no levelling off: the loss falls by the same share, or by more, with every x.",
            fix="Train at more and larger x.",
        )
    low, high = law.asymptote_interval()
    if high - low > _WIDEST * loss.min():
        raise UserError(
            f"These runs leave open where the loss ends: anywhere from {low:.4g} to {high:.4g}.",
            fix="Train at more and wider spaced x, or give `spread` if runs with other seeds have shown it.",
        )
    return law


def from_refits(found: robust.RobustFit, center: float) -> AsymptoteLaw:
    """The law of constants (log A, alpha, log E) that were fitted with x in units of `center`."""
    a, alpha, e = found.theta
    return AsymptoteLaw(float(np.exp(a) * center**alpha), float(alpha), float(np.exp(e)), found, center)


def log_loss(theta: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Log predictions [S, P] of constants (log A, alpha, log E) [S, 3] at log x [P]."""
    a, alpha, e = (theta[:, i, None] for i in range(3))
    return np.logaddexp(a - alpha * u, e)


def refit(theta: np.ndarray, u: np.ndarray, log_losses: np.ndarray, delta: float = 1e-3) -> np.ndarray:
    """Constants [S, 3] fitted to other measurements [S, P], from theta [3]."""
    starts = np.tile(theta, (len(log_losses), 1))
    return robust.refine(lambda t: log_loss(t, u), log_losses, starts, (_LOW, _HIGH), delta, rounds=60)


def _starts(u: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Exponents and floors on a grid, each with the scale that meets the points on average."""
    exponents = np.geomspace(0.03, 4.0, 16)
    floors = loss.min() * np.array([0.01, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.995])
    rows = [
        (np.log(loss - floor).mean() + alpha * u.mean(), alpha, np.log(floor))
        for alpha in exponents
        for floor in floors
    ]
    return np.array(rows)


def _check(points: Sequence[tuple[float, float]] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    table = np.asarray(points, dtype=float)
    if table.ndim != 2 or table.shape[1] != 2:
        raise UserError("Points must be rows of (x, loss).")
    if not (np.isfinite(table).all() and (table > 0).all()):
        raise UserError("Points must be positive and finite.", fix="Leave out runs that diverged.")
    x, loss = table.T
    places = np.unique(x)
    if len(places) < _FEWEST:
        raise UserError(
            f"Three constants need runs at {_FEWEST} different x at least, for one to spare; there are {len(places)}.",
            fix="Train at more sizes.",
        )
    means = np.array([loss[x == place].mean() for place in places])
    fall = means[0] - means.min()
    if means.argmin() == 0 or means[-1] - means.min() > _RISE * fall:
        raise UserError(
            f"The loss does not keep falling: {means[0]:.4g} at x = {places[0]:.4g}, lowest {means.min():.4g} at "
            f"{places[means.argmin()]:.4g}, {means[-1]:.4g} at {places[-1]:.4g}.",
            fix="A loss that rises again is overfitted: tune weight decay and epochs at every x.",
        )
    return x, loss
