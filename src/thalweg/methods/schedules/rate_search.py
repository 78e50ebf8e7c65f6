"""The next learning rate to try: a Gaussian process over the logarithm of the rate, and its lower confidence bound.

    ask()   the rate of [low, high], on a logarithmic grid, with the smallest mu - kappa sigma
    tell()  what it led to; lower is better
    best()  of the rates that were tried, the one with the lowest value

mu and sigma are the process's mean and standard deviation at a rate. Its kernel is Matern 5/2 with noise,
k(r) = s^2 ((1 + d + d^2 / 3) exp(-d) + noise [r = 0]), d = sqrt(5) |r| / length, r in log-rate as a share of the
range; length and noise are those of the largest marginal likelihood on a grid, s^2 then has a closed form. With a large
kappa mu does not matter, and the rates spread over the range; the choice is then made by `best`.

    search = RateSearch(1e-4, 1e-2)
    for _ in range(10):
        rate = search.ask()
        search.tell(rate, loss_after_some_steps_at(rate))
    rate = search.best()

Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), chapters 2 and 5; kappa = 1e6 and the
rule that no rate is tried twice are those of AutoLRS's released code (arXiv:2105.10762), which uses a library.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from thalweg.errors import RecipeError

Numbers = NDArray[np.float64]

_POINTS = 401  # of the grid: over two decades, neighbours differ by 1.2%
_LENGTHS = np.geomspace(0.05, 2.0, 12)
_NOISES = np.geomspace(1e-6, 1.0, 7)


class RateSearch:
    """Asks for learning rates in [low, high] and is told what they led to.

    Args:
        low, high: the range; equal bounds are allowed and leave nothing to search.
        kappa: how much more a rate counts that little is known about.
        first: the rate to begin with; the middle of the range if left out.
        tried: pairs of rate and value known already.

    Raises:
        RecipeError: no range, or a kappa below 0.
    """

    def __init__(
        self,
        low: float,
        high: float,
        kappa: float = 1e6,
        first: float | None = None,
        tried: Iterable[tuple[float, float]] = (),
    ) -> None:
        if not 0.0 < low <= high < math.inf:
            raise RecipeError(f"low = {low:g} and high = {high:g} are no range of learning rates", where="rate search")
        if not 0.0 <= kappa < math.inf:
            raise RecipeError(f"kappa = {kappa:g} is not a number of at least 0", where="rate search")
        self.low, self.high, self.kappa = float(low), float(high), float(kappa)
        self.first = min(max(math.sqrt(low * high) if first is None else first, self.low), self.high)
        self.tried = [(float(rate), float(value)) for rate, value in tried]

    def ask(self) -> float:
        """The rate to try next: never one that was tried before, unless the range is a single rate."""
        if not self.tried or self.low == self.high:
            return self.first
        grid = np.linspace(0.0, 1.0, _POINTS)
        places = self._places()
        free = (np.abs(grid[:, None] - places) > 0.5 / (_POINTS - 1)).all(axis=1)
        mean, deviation = posterior(places, self._values(), grid[free])
        chosen = grid[free][int(np.argmin(mean - self.kappa * deviation))]
        # The ends exactly: a power of a quotient would miss them by a rounding.
        return {0.0: self.low, 1.0: self.high}.get(chosen, self.low * (self.high / self.low) ** float(chosen))

    def tell(self, rate: float, value: float) -> None:
        """What a rate led to; infinity or NaN for a rate that must not be chosen."""
        self.tried.append((float(rate), float(value)))

    def best(self) -> float | None:
        """The tried rate with the lowest value (the first of equals); None if none has a finite one."""
        finite = [pair for pair in self.tried if math.isfinite(pair[1])]
        return min(finite, key=lambda pair: pair[1])[0] if finite else None

    def _places(self) -> Numbers:
        rates = np.array([rate for rate, _ in self.tried])
        return np.log(rates / self.low) / math.log(self.high / self.low)

    def _values(self) -> Numbers:
        """Values as the process may see them: what is not finite is as far above the worst as that above the best."""
        values = np.array([value for _, value in self.tried])
        finite = values[np.isfinite(values)]
        if len(finite) == 0:
            return np.zeros(len(values))
        return np.where(np.isfinite(values), values, 2.0 * finite.max() - finite.min())


def posterior(places: Numbers, values: Numbers, where: Numbers) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation [m] of the process at `where` [m], given values [n] at places [n] in [0, 1]."""
    middle = values.mean()
    scale = float(values.std()) or 1.0
    known = (values - middle) / scale
    length, noise, strength = _most_likely(places, known)
    factor = cho_factor(_matern(places, places, length) + noise * np.eye(len(places)), lower=True)
    across = _matern(where, places, length)
    mean = across @ cho_solve(factor, known)
    variance = 1.0 - np.einsum("mn,nm->m", across, cho_solve(factor, across.T))
    return middle + scale * mean, scale * np.sqrt(strength * np.maximum(variance, 0.0))


def _most_likely(places: Numbers, known: Numbers) -> tuple[float, float, float]:
    """(length, noise as a share of the strength, strength s^2) of the largest marginal likelihood on the grid."""
    best, found = math.inf, (0.0, 0.0, 0.0)
    count = len(places)
    for length in _LENGTHS:
        kernel = _matern(places, places, length)
        for noise in _NOISES:
            factor = cho_factor(kernel + noise * np.eye(count), lower=True)
            # The floor keeps a strength for values that are all the same.
            strength = max(float(known @ cho_solve(factor, known)) / count, 1e-12)
            unlikely = count * math.log(strength) + 2.0 * float(np.log(np.diag(factor[0])).sum())
            if unlikely < best:
                best, found = unlikely, (float(length), float(noise), strength)
    return found


def _matern(one: Numbers, other: Numbers, length: float) -> Numbers:
    """The Matern 5/2 kernel of unit strength between places [m] and places [n]: [m, n]."""
    distance = math.sqrt(5.0) * np.abs(one[:, None] - other) / length
    return (1.0 + distance + np.square(distance) / 3.0) * np.exp(-distance)
