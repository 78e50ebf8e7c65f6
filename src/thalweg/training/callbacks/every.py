"""When something is due: every so much of a budget's unit, or a number of times a run."""

from __future__ import annotations

from thalweg.budget import Budget
from thalweg.training.clock import Clock


class Every:
    """`due(clock)` is true once in every stretch of `interval`, or `times` times over the whole run.

    A function of the clock and of the last stretch seen, so that a resumed run asks at the same places.
    """

    def __init__(self, interval: Budget | None = None, times: int = 1) -> None:
        self.interval, self.times = interval, times
        self.seen = 0

    def due(self, clock: Clock) -> bool:
        """Whether a new stretch has begun since the last call."""
        now = self._stretch(clock)
        due = now > self.seen
        self.seen = max(self.seen, now)
        return due

    def _stretch(self, clock: Clock) -> int:
        if self.interval is None:
            return int(clock.progress * self.times)
        return int(clock.spending(self.interval.unit) / self.interval.amount)
