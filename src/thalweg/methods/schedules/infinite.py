"""Infinite: warm up, cool to a moderately high constant, stay there for as long as data comes, anneal when asked.

With p the share of the budget that is spent and the four parts `warmup`, `cooldown`, the rest, `anneal`:

    factor = p / warmup                                         p < warmup
    factor = g(x), x = (p - warmup) / cooldown                  while cooling, g(0) = 1, g(1) = constant
             cosine:        constant + (1 - constant) * (1 + cos(pi x)) / 2
             inverse_sqrt:  1 + (constant - 1) * h(x) / h(1),   h(x) = 1 / sqrt(1 + alpha x) - 1
    factor = constant                                           until 1 - anneal
    factor = constant * (floor / constant) ** y                 y = (p - (1 - anneal)) / anneal

All levels are shares of the peak rate. The resting rate is what makes it infinite: new data can come at any time, and
the rate does not jump. Later data sets start from the checkpoint at the end of the constant part (`trunk_end`), with
the optimizer's moments and with `warmup=0, cooldown=0`; what is delivered is an annealed branch from there, never the
starting point of more training. `constant=1` is warmup-stable-decay with an exponential decay.

Sources: "Beyond Cosine Decay: On the effectiveness of Infinite Learning Rate Schedule for Continual Pre-training"
(2025, arXiv:2503.02844) and, where it comes from, "Simple and Scalable Strategies to Continually Pre-train Large
Language Models" (2024, arXiv:2403.08763). The defaults (cool until 60% of the budget, anneal over the last 15%, alpha
10, constant halfway between peak and a tenth of it) are remembered from the latter, not read. Where the annealing ends
is read in two ways in public code: one divides its exponent by the annealing's length, as here, so that the last step
of the run is at the floor; another divides by more and ends above it.
"""

from __future__ import annotations

import math

from thalweg.errors import RecipeError
from thalweg.methods.schedules.base import Schedule

SHAPES = ("cosine", "inverse_sqrt")


class Infinite(Schedule):
    """Linear warm-up, cooldown to a constant, the constant, an exponential annealing.

    Args:
        warmup: share of the budget spent warming up.
        cooldown: share of the budget spent falling from the peak to `constant`, after the warm-up.
        anneal: share of the budget spent annealing, at its end. 0 leaves the trunk alone.
        constant: the resting level, as a share of the peak.
        floor: the last factor, above 0 and at most `constant`.
        shape: how the rate cools: cosine or inverse_sqrt.
        alpha: how early the inverse square root falls; cosine does not use it.

    Raises:
        RecipeError: an option out of range, or parts that add up to more than the budget.
    """

    def __init__(
        self,
        warmup: float = 0.01,
        cooldown: float = 0.59,
        anneal: float = 0.15,
        constant: float = 0.55,
        floor: float = 0.1,
        shape: str = "cosine",
        alpha: float = 10.0,
    ) -> None:
        super().__init__(warmup)
        self.cooldown = self._share("cooldown", cooldown)
        self.anneal = self._share("anneal", anneal)
        self.constant = self._share("constant", constant)
        self.floor = self._share("floor", floor)
        self.alpha = float(alpha)
        self.cooldown_shape = self._known("shape", shape, SHAPES)
        self._check()

    def _check(self) -> None:
        self._within_budget("warmup", "cooldown", "anneal")
        if not 0.0 < self.floor <= self.constant:
            raise RecipeError(
                f"floor = {self.floor:g} is not above 0 and at most constant = {self.constant:g}",
                where=self._where,
                fix="An exponential never ends at 0: give a floor such as 0.1, below constant.",
            )
        if not (self.alpha > 0.0 and math.isfinite(self.alpha)):
            raise RecipeError(f"alpha = {self.alpha:g} is not above 0", where=self._where, fix="Try 10.")

    @property
    def trunk_end(self) -> float:
        return 1.0 - self.anneal

    def shape(self, progress: float) -> float:
        """Cooling, resting or annealing."""
        left = (1.0 - progress) * (1.0 - self.warmup)
        if left < self.anneal:
            return self.constant * (self.floor / self.constant) ** (1.0 - left / self.anneal)
        gone = progress * (1.0 - self.warmup)
        if gone >= self.cooldown:
            return self.constant
        return self.constant + (1.0 - self.constant) * self._height(gone / self.cooldown)

    def _height(self, x: float) -> float:
        """What is left of the way from the peak to the constant at the cooldown's share x: from 1 to 0."""
        if self.cooldown_shape == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * x))
        last = 1.0 / math.sqrt(1.0 + self.alpha)
        return (1.0 / math.sqrt(1.0 + self.alpha * x) - last) / (1.0 - last)
