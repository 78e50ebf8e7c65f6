"""Power: the learning rate that would be best for a run as long as this one is by now, so that no end must be known.

Thousands of small runs gave a law for the best constant rate of a run of T tokens with batches of B sequences,
B * a * T**b with b near -0.5. Here the law is the schedule. With n the tokens trained on:

    law(n) = min(1, B * a * n**b / peak)                                a share of the peak rate
    factor = law(n at the end of the warm-up) * p / warmup              p < warmup
    factor = law(n)                                                     until the decay
    factor = law(n at the decay's start) * f(x),  x in [0, 1]           over the last `decay` of the budget
             linear:       floor + (1 - floor) * (1 - x)
             exponential:  floor + (1 - floor) * (exp(1 - x) - 1) / (e - 1)

Only the decay asks for the budget: the trunk is the same whatever is planned, can be branched at any time, and goes on
with its own count of tokens when a run is extended. B counts sequences, not tokens, and `a` belongs to the length of
those: 4.6 was fitted with 4096 tokens a sequence and maximal-update parametrization (Adam's rate of hidden matrices
divided by their width over a base width). With windows of another length, a * length / 4096 is the same law per token.

Source: "Power Scheduler: A Batch Size and Token Number Agnostic Learning Rate Scheduler" (2024, arXiv:2408.13359). Its
law of the best rates has a = 4.6, b = -0.51; its own runs use a = 4, peak 0.02 and an exponential decay to zero over
the last tenth; the exponential's form is that of the authors' training code. Ours: n counts the step under way, as
progress does, which also keeps n above 0; where the clock counts no tokens n is steps * B * context; and n at the two
boundaries is n in proportion to progress, exact when every step costs the same.
"""

from __future__ import annotations

import math
from typing import Any

from thalweg.errors import RecipeError
from thalweg.methods.schedules.base import Schedule

SHAPES = ("exponential", "linear")
OF_THE_RUN = ("peak_lr", "batch_size", "context")


class Power(Schedule):
    """Linear warm-up, a capped power law of the tokens, a short decay.

    Args:
        warmup: share of the budget spent warming up.
        decay: share of the budget spent decaying, at its end. 0 leaves the trunk.
        a: amplitude of the law, in learning rate a sequence at n = 1.
        b: exponent of the law, at most 0.
        shape: how the decay falls: exponential or linear.
        floor: the value that the decay ends at, as a share of its start.
        peak_lr: the optimizer's rate, which caps the law. Within Thalweg's trainer this and the next two are the run's
            own; loops without it say them here.
        batch_size: sequences a step.
        context: tokens a sequence; used where the clock counts steps only.

    Raises:
        RecipeError: an option out of range, or warmup + decay above 1.
    """

    def __init__(
        self,
        warmup: float = 0.05,
        decay: float = 0.1,
        a: float = 4.6,
        b: float = -0.51,
        shape: str = "exponential",
        floor: float = 0.0,
        peak_lr: float = 0.02,
        batch_size: int = 1024,
        context: int = 4096,
    ) -> None:
        super().__init__(warmup)
        self.decay = self._share("decay", decay)
        self.floor = self._share("floor", floor)
        self.a, self.b = float(a), float(b)
        self.decay_shape = self._known("shape", shape, SHAPES)
        self.peak_lr, self.batch_size, self.context = float(peak_lr), int(batch_size), int(context)
        self.tokens_before = 0
        self._check()

    def _check(self) -> None:
        self._within_budget("warmup", "decay")
        for name in ("a", *OF_THE_RUN):
            if not 0.0 < getattr(self, name) < math.inf:
                raise RecipeError(f"{name} = {getattr(self, name):g} is not a number above 0", where=self._where)
        if not -math.inf < self.b <= 0.0:
            raise RecipeError(
                f"b = {self.b:g} is not a number of at most 0", where=self._where, fix="The paper's law has b = -0.51."
            )

    @property
    def trunk_end(self) -> float:
        return 1.0 - self.decay

    def setup(self, trainer: Any) -> None:
        """Within the trainer: the law knows the run's rate, batch and window, and the tokens of the runs before it."""
        said = [name for name in OF_THE_RUN if name in trainer.recipe.schedule.options]
        if said:
            raise RecipeError(
                f"power takes {' and '.join(said)} from the run",
                where=self._where,
                fix="Leave it out here; set training.peak_lr, training.batch_size or data.context instead.",
            )
        for name in OF_THE_RUN:
            setattr(self, name, trainer.plan[name])
        start = getattr(trainer.recipe, "start", None)
        self.tokens_before = start.tokens if start is not None else 0

    def law(self, tokens: float) -> float:
        """The rate for `tokens` > 0, as a share of the peak: min(1, batch_size * a * tokens**b / peak_lr)."""
        # In logarithms, since no option within its bounds may overflow.
        logarithm = math.log(self.batch_size * self.a / self.peak_lr) + self.b * math.log(tokens)
        return math.exp(logarithm) if logarithm < 0.0 else 1.0

    def factor(self, clock: Any) -> float:
        """The law, held at its value at the boundary during warm-up and decay, times their rise and fall."""
        step_tokens = self.batch_size * self.context
        tokens = (clock.tokens or clock.step * step_tokens) + step_tokens
        progress = min(max(float(clock.progress), 0.0), 1.0)
        if progress > 0.0:
            tokens *= min(max(progress, self.warmup), 1.0 - self.decay) / progress
        return super().factor(clock) * self.law(self.tokens_before + max(tokens, 1.0))

    def shape(self, progress: float) -> float:
        """Rise and fall without the law: 1 on the trunk, then the chosen fall."""
        left = (1.0 - progress) * (1.0 - self.warmup)
        if left >= self.decay:
            return 1.0
        height = left / self.decay
        if self.decay_shape == "exponential":
            height = math.expm1(height) / math.expm1(1.0)
        return self.floor + (1.0 - self.floor) * height
