"""Warmup-stable-decay: a constant trunk from which a short decay finishes the run.

    factor = p / warmup            p < warmup
    factor = 1                     warmup <= p < 1 - decay
    factor = f(x)                  x = (p - (1 - decay)) / decay, f(0) = 1, f decreasing

The trunk does not know where the run ends, so a longer budget continues from the trunk's checkpoint: branch with
weights, moments and data position, without a new warm-up. Shapes of the decay, with `floor` the value at its end:

    linear          floor + (1 - floor) * (1 - x)
    cosine          floor + (1 - floor) * (1 + cos(pi x)) / 2
    one_minus_sqrt  floor + (1 - floor) * (1 - sqrt(x))
    exponential     floor + (1 - floor) * 0.5 ** (x / half_life)     (ends above the floor)
    reciprocal      1 / (x / floor + 1 - x)                          (needs floor > 0)

Source: "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies" (2024,
arXiv:2404.06395); reciprocal: "Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape
Perspective" (2024, arXiv:2410.05192). The report prints its exponential with symbols that read literally give a
value above 1; the half-life form here is what it describes. `decay` is inside the budget: the last `decay` of it.
"""

from __future__ import annotations

import math

from thalweg.errors import RecipeError
from thalweg.methods.schedules.base import Schedule

SHAPES = ("linear", "cosine", "one_minus_sqrt", "exponential", "reciprocal")


class WSD(Schedule):
    """Linear warm-up, constant trunk, short decay.

    Args:
        warmup: share of the budget spent warming up.
        decay: share of the whole budget spent decaying, at its end. 0 leaves the constant trunk.
        shape: how the factor falls: linear, cosine, one_minus_sqrt, exponential or reciprocal.
        floor: the value that the decay ends at (exponential: tends to), as a share of the peak.
        half_life: share of the decay over which the exponential halves; other shapes do not use it.

    Raises:
        RecipeError: an option out of range, warmup + decay above 1, or reciprocal without a floor.
    """

    def __init__(
        self,
        warmup: float = 0.05,
        decay: float = 0.2,
        shape: str = "linear",
        floor: float = 0.0,
        half_life: float = 0.25,
    ) -> None:
        super().__init__(warmup)
        self.decay = self._share("decay", decay)
        self.floor = self._share("floor", floor)
        self.half_life = float(half_life)
        self.decay_shape = self._known("shape", shape, SHAPES)
        self._check()

    def _check(self) -> None:
        self._within_budget("warmup", "decay")
        if not self.half_life > 0.0:
            raise RecipeError(f"half_life = {self.half_life:g} is not above 0", where=self._where, fix="Try 0.25.")
        if self.decay_shape == "reciprocal" and self.floor <= 0.0:
            raise RecipeError(
                "shape = 'reciprocal' needs a floor above 0", where=self._where, fix="Set floor, such as floor=0.1."
            )

    @property
    def trunk_end(self) -> float:
        return 1.0 - self.decay

    def shape(self, progress: float) -> float:
        """1 on the trunk, then the chosen fall."""
        left = (1.0 - progress) * (1.0 - self.warmup)
        if left >= self.decay:
            return 1.0
        return self._fall(1.0 - left / self.decay)

    def _fall(self, x: float) -> float:
        """The decay at its share x in [0, 1]."""
        if self.decay_shape == "reciprocal":
            return 1.0 / (x / self.floor + 1.0 - x)
        if self.decay_shape == "linear":
            height = 1.0 - x
        elif self.decay_shape == "cosine":
            height = 0.5 * (1.0 + math.cos(math.pi * x))
        elif self.decay_shape == "one_minus_sqrt":
            height = 1.0 - math.sqrt(x)
        else:
            height = 0.5 ** (x / self.half_life)
        return self.floor + (1.0 - self.floor) * height
