"""What a schedule will do before it is there: factors at moments to come, where the clock alone decides them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# A schedule with one of these decides by what training measures: its rates are not known before.
CLOSED_LOOP = ("observe", "batch", "losses", "loss", "raw_gradients", "gradients", "step", "skipped", "evaluation")


@dataclass(frozen=True)
class PlannedClock:
    """A clock at a step that is not there yet."""

    step: int
    progress: float
    tokens: float
    seconds: float
    flops: float


def is_closed_form(schedule: Any) -> bool:
    """Whether the clock alone tells the schedule's factors."""
    return not any(hasattr(schedule, hook) for hook in CLOSED_LOOP)


def planned_factors(
    schedule: Any, first: int, steps: int, costs: tuple[float, float, float], points: int
) -> np.ndarray:
    """Factors of steps first..steps-1 (0-based) of a run of `steps` equal steps.

    Args:
        schedule: of closed form.
        costs: tokens, seconds and flops a step.
        points: at which the schedule is asked; factors between them lie on straight lines.
    """
    places = np.unique(np.linspace(first, steps - 1, min(max(steps - first, 1), points)).round().astype(int))
    factors = [
        schedule.factor(PlannedClock(step, (step + 1) / steps, *(step * cost for cost in costs)))
        for step in places.tolist()
    ]
    return np.interp(np.arange(first, steps), places, factors)
