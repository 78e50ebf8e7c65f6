"""Re-warm and re-decay: how a model whose cosine is over learns a new corpus.

At the end of its schedule a model sits at a tiny rate and learns little from new text. So the rate climbs back from
where it was left to the peak, and half a cosine takes it down again over the new budget. With p the progress:

    factor = start + (1 - start) * p / warmup                                p < warmup
    factor = floor + (1 - floor) * (1 + cos(pi (p - warmup) / (1 - warmup))) / 2

`start` is the last rate of the run before, as a share of this run's peak, so that nothing jumps; 0 is used as well.
The other half of the recipe is data: a share of every batch is drawn from the old corpus, at the same total number of
tokens (`thalweg.data.replay`; `thalweg extend --corpus`). Judge at the end: during the re-warming the loss rises.

Source: "Simple and Scalable Strategies to Continually Pre-train Large Language Models" (2024, arXiv:2403.08763),
after "Continual Pre-Training of Large Language Models: How to (re)warm your model?" (2023, arXiv:2308.04014). From
which rate its runs re-warm is not certain to us; the source finds the length of the warm-up to matter little.
"""

from __future__ import annotations

import math

from thalweg.methods.schedules.base import ReadableClock, Schedule


class RewarmRedecay(Schedule):
    """Linear re-warm-up from `start` to the peak, then half a cosine to `floor`.

    Args:
        warmup: share of the budget spent climbing back to the peak.
        start: the rate that the run before ended with, as a share of this peak.
        floor: the last factor, as a share of the peak.
    """

    def __init__(self, warmup: float = 0.01, start: float = 0.1, floor: float = 0.1) -> None:
        super().__init__(warmup)
        self.start = self._share("start", start)
        self.floor = self._share("floor", floor)

    def factor(self, clock: ReadableClock) -> float:
        """The base's warm-up, lifted: from `start` instead of 0."""
        plain = super().factor(clock)
        return self.start + (1.0 - self.start) * plain if clock.progress < self.warmup else plain

    def shape(self, progress: float) -> float:
        """floor + (1 - floor) * (1 + cos(pi * progress)) / 2."""
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
