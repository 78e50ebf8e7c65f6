"""What has been spent: the one thing that schedules look at.

`progress` is read during a step and means the progress at the *end* of that step: of a budget of T steps the 0-based
step t sees (t + 1) / T, and the last step of every run sees exactly 1. Under a time budget the cost of the coming
step is forecast from the steps before, and what must still happen after the last step (evaluation, checkpoint,
report) is kept in reserve, so that the rate lands on its end when the time does.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Any

from thalweg.budget import Budget

_TIMED_STEPS = 15  # enough for a steady median, few enough to follow a machine whose speed drifts


class Clock:
    """Counts steps, tokens, seconds and training FLOPs against a budget.

    Args:
        budget: what may be spent.
        epoch_tokens: tokens in one pass over the training split; needed by budgets in epochs.
        started: `time.monotonic()` at the start of the run; now when left out.
        step_seconds: first guess for the duration of a step, until steps have been timed.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        epoch_tokens: int | None = None,
        started: float | None = None,
        step_seconds: float = 0.0,
    ) -> None:
        self.budget = budget
        self.step, self.tokens, self.flops = 0, 0, 0.0
        self.progress = 0.0
        self.last = False
        self.reserve: dict[str, float] = {}
        self._epoch_tokens = epoch_tokens
        self._started = time.monotonic() if started is None else started
        self._before = 0.0
        self._guess = step_seconds
        self._durations: deque[float] = deque(maxlen=_TIMED_STEPS)

    @property
    def seconds(self) -> float:
        """Seconds since the run started, without the time between an interruption and its resumption."""
        return self._before + time.monotonic() - self._started

    @property
    def step_seconds(self) -> float:
        """Duration of a step: the median of the last ones, or the first guess."""
        return statistics.median(self._durations) if self._durations else self._guess

    @property
    def last_duration(self) -> float | None:
        """Seconds of the last step, without what callbacks did after it; None before the first."""
        return self._durations[-1] if self._durations else None

    @property
    def room(self) -> float:
        """What the steps may spend: the budget less, in seconds, the reserve for what follows them."""
        if self.budget.unit != "seconds":
            return self.budget.amount
        return max(self.budget.amount - sum(self.reserve.values()), 1e-9)

    def spending(self, unit: str) -> float:
        """What has been spent so far, in a budget's unit."""
        if unit == "epochs":
            if not self._epoch_tokens:
                raise ValueError("a budget in epochs needs the number of tokens in an epoch")
            return self.tokens / self._epoch_tokens
        return float(getattr(self, unit if unit != "steps" else "step"))

    def cost(self, tokens: int, flops: float) -> float:
        """What one step of `tokens` and `flops` costs, in the unit of this clock's budget."""
        return {
            "steps": 1.0,
            "tokens": float(tokens),
            "epochs": tokens / (self._epoch_tokens or 1),
            "flops": flops,
            "seconds": self.step_seconds,
        }[self.budget.unit]

    def begin_step(self, tokens: int, flops: float) -> None:
        """Set `progress` (and `last`) for the coming step, which will cost `tokens` and `flops`."""
        spent, cost = self.spending(self.budget.unit), self.cost(tokens, flops)
        # Counted budgets are never overspent; a time budget is met to half a step either way.
        following = 0.5 * cost if self.budget.unit == "seconds" else cost
        self.last = spent + cost + following > self.room * (1 + 1e-9)
        self.progress = 1.0 if self.last else max(self.progress, (spent + cost) / self.room)

    def advance(self, tokens: int, flops: float, duration: float | None = None) -> None:
        """Count a finished step; `duration` is its time in seconds."""
        self.step += 1
        self.tokens += tokens
        self.flops += flops
        if duration is not None:
            self._durations.append(duration)

    def remaining_seconds(self, tokens: int, flops: float) -> float:
        """Expected seconds until the last step is done."""
        left = max(self.room - self.spending(self.budget.unit), 0.0)
        return left if self.budget.unit == "seconds" else left / self.cost(tokens, flops) * self.step_seconds

    def rewound(self, seconds: float) -> None:
        """After going back to an earlier state: the time spent since then stays spent."""
        self._before, self._started = seconds, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "tokens": self.tokens,
            "flops": self.flops,
            "seconds": self.seconds,
            "progress": self.progress,
            "last": self.last,
            "step_seconds": self.step_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.tokens, self.flops = state["step"], state["tokens"], state["flops"]
        self.progress, self.last = state["progress"], state["last"]
        self._before, self._started = state["seconds"], time.monotonic()
        self._guess = state["step_seconds"]
        self._durations.clear()
