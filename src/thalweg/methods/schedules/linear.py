"""Linear: warm up, then fall in a straight line to a floor.

With x in [0, 1] the share of the budget after the warm-up: factor = floor + (1 - floor) * (1 - x).
Source: common practice; "Straight to Zero: Why Linearly Decaying the Learning Rate to Zero Works Best for LLMs"
(2025, arXiv:2502.15938) argues for floor = 0, which is the default here.
"""

from __future__ import annotations

from thalweg.methods.schedules.base import Schedule


class Linear(Schedule):
    """Linear warm-up to the peak, then a straight line to `floor`.

    Args:
        warmup: share of the budget spent warming up.
        floor: the last factor, as a share of the peak.
    """

    def __init__(self, warmup: float = 0.05, floor: float = 0.0) -> None:
        super().__init__(warmup)
        self.floor = self._share("floor", floor)

    def shape(self, progress: float) -> float:
        """floor + (1 - floor) * (1 - progress)."""
        return self.floor + (1.0 - self.floor) * (1.0 - progress)
