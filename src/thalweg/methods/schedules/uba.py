"""UBA: one parameter slides a budgeted decay from almost constant, through cosine, to falling at once.

With x in [0, 1] the share of the budget after the warm-up and u = (1 + cos(pi x)) / 2, the cosine decay:

    s(x)   = 2 u / (phi + (2 - phi) u)
    factor = floor + (1 - floor) * s(x)

so logit(s) = logit(u) + log(2 / phi): phi shifts the cosine in its logit. phi = 2 is cosine; a smaller phi stays high
for longer and drops late, a larger one drops early. The mean of s is 1 / (1 + sqrt(phi / 2)), so another phi wants
another peak rate. No state; factor is a share of the peak rate, phi has no unit.

Source: "Stepsize anything: A unified learning rate schedule for budgeted-iteration training" (2025, arXiv:2505.24452),
which derives the curve from a min-max problem over landscapes whose curvature is known up to a range, and ties phi to
their condition number. No official code. Ours: the first step of T sees x = 1 / T after the warm-up, as everywhere in
this house; how the paper splits the cosine into steps could not be read and differs by O(1 / T). Which phi it
recommends could not be read either: the default is the house's guess, below 2 since at our scale schedules that stay
high for longer than cosine did better (benchmarks/README.md).
"""

from __future__ import annotations

import math

from thalweg.errors import RecipeError
from thalweg.methods.schedules.base import Schedule


class UBA(Schedule):
    """Linear warm-up, then the budget-aware decay to `floor`.

    Args:
        warmup: share of the budget spent warming up.
        phi: above 0; below 2 later than cosine, above 2 earlier.
        floor: the last factor, as a share of the peak.

    Raises:
        RecipeError: an option out of range.
    """

    def __init__(self, warmup: float = 0.05, phi: float = 0.5, floor: float = 0.0) -> None:
        super().__init__(warmup)
        self.phi = float(phi)
        self.floor = self._share("floor", floor)
        if not (self.phi > 0.0 and math.isfinite(self.phi)):
            raise RecipeError(
                f"phi = {self.phi:g} is not a number above 0",
                where="schedule uba",
                fix="2 is cosine; try 0.5 for a later fall or 5 for an earlier one.",
            )

    def shape(self, progress: float) -> float:
        """floor + (1 - floor) * 2 u / (phi + (2 - phi) u)."""
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.floor + (1.0 - self.floor) * 2.0 * cosine / (self.phi + (2.0 - self.phi) * cosine)
