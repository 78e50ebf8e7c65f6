"""What every schedule has in common: a warm-up, a shape, and a place in anyone's training loop.

A schedule is a number between the clock and the optimizer: `lr = peak * schedule.factor(clock)`. It reads
`clock.progress`, the share of the budget that is spent, and so it works for a budget of seconds, steps, tokens,
epochs or flops. Progress read during a step is that at the END of the step: of T steps, step t (0-based) sees
(t + 1) / T, the first step trains with a rate above zero and the last one sees progress 1 exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from thalweg.errors import RecipeError


class ReadableClock(Protocol):
    """The part of a clock that an open-loop schedule reads."""

    @property
    def progress(self) -> float: ...


@dataclass(frozen=True)
class StepClock:
    """A clock for loops that count steps only."""

    step: int
    progress: float
    tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0


class Schedule(ABC):
    """A learning rate in units of its peak, as a function of the clock.

    Args:
        warmup: share of the budget, in [0, 1), over which the factor rises linearly from 0 to 1.

    Raises:
        RecipeError: an option is outside its range.
    """

    def __init__(self, warmup: float = 0.05) -> None:
        self.warmup = self._share("warmup", warmup, high=1.0, high_allowed=False)

    @property
    def trunk_end(self) -> float | None:
        """Share of the budget at which a constant trunk ends and a decay begins; None for schedules without a trunk.

        What is trained up to there can be continued under any other budget as if the decay had never been.
        """
        return None

    @abstractmethod
    def shape(self, progress: float) -> float:
        """The factor after the warm-up, where `progress` in [0, 1] is the share of what follows the warm-up."""

    def factor(self, clock: ReadableClock) -> float:
        """The learning rate in units of its peak at this moment of the run."""
        progress = min(max(float(clock.progress), 0.0), 1.0)
        if progress < self.warmup:
            return progress / self.warmup
        # min: at progress 1 the quotient can round to a hair above 1.
        return self.shape(min((progress - self.warmup) / (1.0 - self.warmup), 1.0))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the options; nothing for a function of the clock."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if state:
            raise RecipeError(
                f"this checkpoint holds schedule state {sorted(state)}, but {self._name} keeps none",
                where=self._where,
                fix="Resume with the schedule that the run was started with.",
            )

    def scheduler(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """This schedule as a torch scheduler for a loop of `total_steps` optimizer steps."""
        return ScheduleLR(optimizer, self, total_steps)

    @property
    def _name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def _where(self) -> str:
        return f"schedule {self._name}"

    def _share(self, name: str, value: float, *, high: float = 1.0, high_allowed: bool = True) -> float:
        """`value` as a float in [0, high] or [0, high), else an error that names the option."""
        value = float(value)
        inside = 0.0 <= value <= high if high_allowed else 0.0 <= value < high
        if not (math.isfinite(value) and inside):
            bracket = "]" if high_allowed else ")"
            raise RecipeError(
                f"{name} = {value} is not in [0, {high:g}{bracket}",
                where=self._where,
                fix=f"{name} is a share: give a number such as 0.1.",
            )
        return value

    def _known(self, name: str, value: str, choices: tuple[str, ...]) -> str:
        """`value` when it is one of `choices`, else an error that lists them."""
        if value not in choices:
            raise RecipeError(
                f"{name} = {value!r} is not known", where=self._where, fix=f"Choose from {', '.join(choices)}."
            )
        return value

    def _within_budget(self, *names: str) -> None:
        """Refuse parts (attributes that are shares of the budget) that add up to more than all of it."""
        shares = [getattr(self, name) for name in names]
        # A hair of rounding is forgiven, so that warmup=0.7, decay=0.3 is a schedule without a trunk.
        if sum(shares) > 1.0 + 1e-9:
            *first, last = [f"{name} = {share:g}" for name, share in zip(names, shares, strict=True)]
            raise RecipeError(
                f"{', '.join(first)} and {last} add up to more than the whole budget",
                where=self._where,
                fix="They are shares of the budget: make their sum at most 1.",
            )

    def _refuse_shards(self, trainer: Any) -> None:
        """For schedules that hold tensors as large as the model: checkpoints of sharded runs hold none of schedules."""
        if getattr(getattr(trainer, "parallel", None), "shard", False):
            raise RecipeError(
                f"{self._name} keeps copies of the weights, which no rank has when they are sharded",
                where="training.shard",
                fix="Leave out --shard, or choose another schedule.",
            )


class ScheduleLR(LRScheduler):
    """A `Schedule` driven by a step count, for `transformers.Trainer` or a hand-written loop.

    At the 0-based step t progress is (t + 1) / total_steps, and 1 from there on. A parameter group may carry
    `lr_scale`, a number that multiplies its rate.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, total_steps: int, last_epoch: int = -1) -> None:
        if total_steps < 1:
            raise RecipeError(f"total_steps = {total_steps} is not a positive number of steps", where="scheduler")
        self.schedule = schedule
        self.total_steps = int(total_steps)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The learning rate of every parameter group at the current step."""
        progress = min((self.last_epoch + 1) / self.total_steps, 1.0)
        factor = self.schedule.factor(StepClock(step=self.last_epoch, progress=progress))
        groups = self.optimizer.param_groups
        return [base * factor * group.get("lr_scale", 1.0) for base, group in zip(self.base_lrs, groups, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Plain data: the schedule is stored by its state, not as an object."""
        hidden = ("optimizer", "schedule")
        state = {key: value for key, value in self.__dict__.items() if key not in hidden}
        return {**state, "schedule_state": self.schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        state = dict(state_dict)
        self.schedule.load_state_dict(state.pop("schedule_state"))
        self.__dict__.update(state)
