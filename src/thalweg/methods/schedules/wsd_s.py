"""WSD-S: warmup-stable-decay whose decayed models lie on one line, since each is followed by a jump back to the peak.

The source pictures the loss as a valley with steep walls and a river that falls slowly along its floor. A high rate
bounces between the walls and yet moves far along the river; a decay settles on the floor and shows how far. The river
is not lost by decaying, so the decayed model need not be a discarded branch: training goes on from it at the peak.

The budget is cut into segments at `ends`. With n the length of a segment, d = decay * n, and p the progress:

    factor = p / warmup                                 first segment, p < warmup
    factor = floor + (1 - floor) * x,  x in [0, 1]      later segments, over their first rewarmup * n
    factor = 1                                          the stable part
    factor = f(x),                     x in [0, 1]      over the last d of the segment, f(0) = 1, f(1) = floor
             reciprocal  1 / (x / floor + 1 - x)        linear in one over the rate
             linear, cosine                             as in wsd

A segment includes its end: the step that finishes it trains at the floor, the next one at the peak. Weights and the
optimizer's memory pass through the jump as they are. With one end it is warmup-stable-decay; `thalweg extend` adds
the segments after that when they are wanted. Where a warm-up and a decay leave too little room, the decay gives way.

Source: "Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective" (2024,
arXiv:2410.05192); floor, re-warm-up and what the shares are of follow Levanter's `cycles`, and the decay of a tenth
is that of marin's 8B run. Ours: `warmup` is a share of the budget, as in every schedule here, and the floor is
reached, where code that indexes steps by their beginning only comes near it.
"""

from __future__ import annotations

from bisect import bisect_left

from thalweg.errors import RecipeError
from thalweg.methods.schedules.base import Schedule
from thalweg.methods.schedules.wsd import WSD

SHAPES = ("reciprocal", "linear", "cosine")
# Progress is a quotient: the step that ends a segment may see a hair more than the end.
ROUNDING = 1e-9


class WSDS(Schedule):
    """Linear warm-up, then segments that are stable, decay, and jump back.

    Args:
        warmup: share of the budget spent warming up, less than the first segment.
        ends: where segments end, as shares of the budget that rise to 1, such as "0.25/0.5/1".
        decay: share of each segment spent decaying, at its end.
        shape: how the factor falls: reciprocal, linear or cosine.
        floor: the factor at the end of every segment, as a share of the peak; above 0 for reciprocal.
        rewarmup: share of each segment but the first that rises from the floor; 0 jumps.

    Raises:
        RecipeError: an option out of range, or ends that do not rise to 1.
    """

    def __init__(
        self,
        warmup: float = 0.05,
        ends: str = "1",
        decay: float = 0.1,
        shape: str = "reciprocal",
        floor: float = 0.1,
        rewarmup: float = 0.0,
    ) -> None:
        super().__init__(warmup)
        self.ends = self._parsed(ends)
        self.decay = self._share("decay", decay)
        self.floor = self._share("floor", floor)
        self.rewarmup = self._share("rewarmup", rewarmup)
        self.decay_shape = self._known("shape", shape, SHAPES)
        if shape == "reciprocal" and self.floor <= 0.0:
            raise RecipeError("shape = 'reciprocal' needs a floor above 0", where=self._where, fix="Set floor=0.1.")
        if self.warmup >= self.ends[0]:
            raise RecipeError(
                f"warmup = {self.warmup:g} reaches the end of the first segment at {self.ends[0]:g}",
                where=self._where,
                fix="Shorten the warm-up or move the first end.",
            )
        # What wsd does over a decay that is the whole budget is the fall itself.
        self._fall = WSD(0.0, 1.0, shape, self.floor).shape

    def _parsed(self, ends: str) -> list[float]:
        try:
            shares = [float(part) for part in str(ends).split("/")]
        except ValueError:
            shares = []
        rising = all(low < high for low, high in zip([0.0, *shares], shares, strict=False))
        # NaN is refused with the rest: it is not above what stands before it.
        if not shares or not rising or abs(shares[-1] - 1.0) > ROUNDING:
            raise RecipeError(
                f"ends = {ends!r} are not shares of the budget that rise to 1",
                where=self._where,
                fix="Write them with slashes, such as ends=0.25/0.5/1.",
            )
        return [*shares[:-1], 1.0]

    @property
    def trunk_end(self) -> float:
        return 1.0 - self._lengths(len(self.ends) - 1)[1]

    def _lengths(self, index: int) -> tuple[float, float]:
        """(rise, fall) of a segment, as shares of the budget."""
        start = self.ends[index - 1] if index else 0.0
        length = self.ends[index] - start
        rise = self.rewarmup * length if index else self.warmup
        return rise, min(self.decay * length, length - rise)

    def shape(self, progress: float) -> float:
        """Where in which segment this is, and what the factor is there."""
        spent = self.warmup + progress * (1.0 - self.warmup)
        index = bisect_left(self.ends, spent - ROUNDING)
        rise, fall = self._lengths(index)
        if index and spent - self.ends[index - 1] < rise:
            return self.floor + (1.0 - self.floor) * (spent - self.ends[index - 1]) / rise
        left = max(self.ends[index] - spent, 0.0)
        return 1.0 if left >= fall else self._fall(1.0 - left / fall)
