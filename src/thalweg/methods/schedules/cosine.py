"""Cosine: warm up, then follow half a cosine wave down to a floor.

With x in [0, 1] the share of the budget after the warm-up:
factor = floor + (1 - floor) * (1 + cos(pi * x)) / 2.
Source: "SGDR: Stochastic Gradient Descent with Warm Restarts" (Loshchilov and Hutter, 2016, arXiv:1608.03983),
here without restarts, as language models are trained.
"""

from __future__ import annotations

import math

from thalweg.methods.schedules.base import Schedule


class Cosine(Schedule):
    """Linear warm-up to the peak, then half a cosine to `floor`.

    Args:
        warmup: share of the budget spent warming up.
        floor: the last factor, as a share of the peak. 0.1 is common; 0 is the default, so that the comparison
            with schedules that end at zero is about their shape.
    """

    def __init__(self, warmup: float = 0.05, floor: float = 0.0) -> None:
        super().__init__(warmup)
        self.floor = self._share("floor", floor)

    def shape(self, progress: float) -> float:
        """floor + (1 - floor) * (1 + cos(pi * progress)) / 2."""
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
