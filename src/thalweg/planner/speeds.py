"""Tokens a second of every size, from the few that are measured.

Until something is measured, training is taken to reach a fixed share of the machine's matrix-product peak. After that a
size that is not measured is taken to use the machine as well as the measured one nearest to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from thalweg.planner import assumptions
from thalweg.planner.layout import Layout
from thalweg.planner.measure import Measure, Speed
from thalweg.planner.situation import Situation
from thalweg.planner.sizes import Size
from thalweg.training import process


@dataclass(frozen=True)
class Known:
    """What one measurement tells about a machine.

    Attributes:
        efficiency: share of the peak that forward and backward passes reach.
        optimizer: seconds of an optimizer step for each parameter stored.
    """

    stored: int
    efficiency: float
    optimizer: float


class Speeds:
    """Measures sizes within an allowance and tells the rate of any.

    Attributes:
        known: by name of the size.
        spent: seconds that measuring took so far.
    """

    def __init__(self, situation: Situation, measure: Measure) -> None:
        self.situation, self._measure = situation, measure
        self.known: dict[str, Known] = {}
        self.timings: dict[str, Speed] = {}
        self.spent = 0.0

    def rate(self, size: Size, context: int, rank_tokens: float) -> float:
        """Training tokens a second of all ranks together, at steps of `rank_tokens` tokens a rank."""
        optimizer = self._nearest(size).optimizer * size.stored
        return rank_tokens / (rank_tokens * self._token_seconds(size, context) + optimizer) * self.situation.ranks

    def _token_seconds(self, size: Size, context: int) -> float:
        return size.flops(context) / (self._nearest(size).efficiency * self.situation.peak)

    def _nearest(self, size: Size) -> Known:
        if size.name in self.known:
            return self.known[size.name]
        nothing = Known(size.stored, assumptions.EFFICIENCY[self.situation.device.type], 0.0)
        return min(self.known.values(), key=lambda known: abs(math.log(known.stored / size.stored)), default=nothing)

    def cost(self, size: Size, layout: Layout) -> float:
        """Seconds that measuring a size is expected to take."""
        passes = assumptions.FIRST_PASS + assumptions.TIMED_PASSES
        one = (
            layout.micro_tokens * self._token_seconds(size, layout.context.value)
            + self._nearest(size).optimizer * size.stored
        )
        return passes * one + size.stored / assumptions.BUILDING_RATE

    def measure(self, size: Size, layout: Layout, most_seconds: float, *, compiled: bool = False) -> Speed:
        """Time a size; `most_seconds` ends it early. A compiled size's speed is told, but not kept as the size's."""
        here = self.situation
        if here.device.type == "cpu" and here.ranks > 1:  # the others wait now, but will want their cores
            process.set_threads(here.threads)
        found = self._measure(
            size,
            here.recipe,
            context=layout.context.value,
            micro_batch=layout.micro,
            precision=here.precision.value,
            device=here.device,
            compiled=compiled,
            most_seconds=most_seconds,
        )
        self.spent += found.spent
        if not compiled:
            flops = size.flops(layout.context.value) * layout.micro_tokens
            self.timings[size.name] = found
            self.known[size.name] = Known(
                size.stored, flops / (found.micro_batch * here.peak), found.optimizer / size.stored
            )
        if here.device.type == "cuda":
            torch.cuda.empty_cache()
        return found
