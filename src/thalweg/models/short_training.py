"""Train some tensors of a model for a short budget, outside of any run: what repairs a model after it was compressed.

AdamW without weight decay. With p in (0, 1) the share of the budget spent at the middle of a step, its rate is

    peak_lr * p / 0.1              while p < 0.1
    peak_lr * (1 - p) / 0.9        then, to 0 at the end of the budget

Rows of the data are gone through in a seeded order, again and again. Steps are taken in float32 whatever the tensors'
type: those of half precision have a float32 copy which is rounded into them after every step. Gradients stay in here:
no `.grad` of the model is touched, and no global random state. A budget in steps gives the same result every time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thalweg.budget import Budget
from thalweg.errors import BudgetError, TrainingError

WARMUP = 0.1
MOST_DURATIONS = 15  # steps whose median says how long the next one takes

Report = Callable[[int, int, float], None]


def factor(progress: float) -> float:
    """The rate in units of its peak at a share of the budget."""
    if progress < WARMUP:
        return max(progress, 0.0) / WARMUP
    return max(1.0 - progress, 0.0) / (1.0 - WARMUP)


class _Clock:
    """Counts steps or seconds against a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self.step = budget, 0
        self._started = self._stepped = time.monotonic()
        self._durations: list[float] = []

    @property
    def progress(self) -> float:
        """The share of the budget that is spent at the middle of the coming step."""
        if self._budget.unit == "steps":
            return (self.step + 0.5) / self._budget.amount
        half = statistics.median(self._durations) / 2 if self._durations else 0.0
        return (time.monotonic() - self._started + half) / self._budget.amount

    @property
    def total(self) -> int:
        """How many steps there will be, as far as is known."""
        if self._budget.unit == "steps":
            return int(self._budget.amount)
        return max(self.step, round(self._budget.amount / max(statistics.median(self._durations or [1.0]), 1e-9)))

    def advance(self) -> None:
        now = time.monotonic()
        self._durations = [*self._durations[1 - MOST_DURATIONS :], now - self._stepped]
        self._stepped = now
        self.step += 1


@dataclass(frozen=True)
class ShortTraining:
    """How to train.

    Args:
        budget: in steps or seconds. A time budget ends with the step after which less than half a step would fit.
        peak_lr: the highest rate.
        batch: rows a step.
        seed: of the order of rows.

    Raises:
        BudgetError: a budget in another unit.
    """

    budget: Budget
    peak_lr: float
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget.unit not in ("steps", "seconds"):
            raise BudgetError(
                f"a short training has no budget in {self.budget.unit}",
                fix='Give steps or seconds, such as "200 steps" or "30s".',
            )

    def run(
        self,
        parameters: Sequence[Tensor],
        loss_of: Callable[[Tensor], Tensor],
        rows: int,
        *,
        at_once: int | None = None,
        report: Report | None = None,
    ) -> list[float]:
        """Train in place.

        Args:
            parameters: leaf tensors that require gradients.
            loss_of: from rows (int64 [n]) to their mean loss, a scalar with its graph.
            rows: how many rows there are.
            at_once: rows for which a graph is held at one time; all of a batch when left out.
            report: called after every step with (steps taken, steps in all as far as is known, the step's loss).

        Returns:
            The loss of every step.

        Raises:
            TrainingError: the loss or a gradient is not finite; the parameters are those of the step before.
        """
        clock, losses = _Clock(self.budget), []
        masters = [parameter.detach().to(_working(parameter.dtype)) for parameter in parameters]
        optimizer = torch.optim.AdamW(masters, lr=self.peak_lr, weight_decay=0.0)
        batches = _batches(rows, self.batch, self.seed)
        while clock.progress < 1.0 or not clock.step:
            optimizer.param_groups[0]["lr"] = self.peak_lr * factor(clock.progress)
            loss, gradients = _gradients(parameters, loss_of, next(batches), at_once or self.batch)
            _check(loss, gradients, clock.step, self.peak_lr)
            for master, gradient in zip(masters, gradients, strict=True):
                master.grad = None if gradient is None else gradient.to(master.dtype)
            optimizer.step()
            _write_back(masters, parameters)
            clock.advance()
            losses.append(loss)
            if report is not None:
                report(clock.step, clock.total, loss)
        return losses


@contextmanager
def trainable(model: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Of all parameters of a model only these require gradients inside; after it all are as they were."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    chosen = {id(parameter) for parameter in parameters}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@torch.no_grad()
def _write_back(masters: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    for master, parameter in zip(masters, parameters, strict=True):
        # A master of the parameter's own type is the parameter: `detach().to()` has made no copy.
        if master.dtype != parameter.dtype:
            parameter.copy_(master)


def _batches(rows: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Rows [batch] from one permutation after the other."""
    generator, waiting = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(rows, generator=generator)])
        yield waiting[:batch]
        waiting = waiting[batch:]


def _gradients(
    parameters: Sequence[Tensor], loss_of: Callable[[Tensor], Tensor], rows: Tensor, at_once: int
) -> tuple[float, list[Tensor | None]]:
    """The mean loss of the rows and its gradients, None where a parameter had no part in it."""
    total = 0.0
    sums: list[Tensor | None] = [None] * len(parameters)
    with torch.enable_grad():
        for part in rows.split(at_once):
            loss = loss_of(part) * (len(part) / len(rows))
            found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
            for index, gradient in enumerate(found):
                if gradient is not None:
                    known = sums[index]
                    sums[index] = gradient if known is None else known + gradient
            total += float(loss.detach())
    return total, sums


def _check(loss: float, gradients: Sequence[Tensor | None], step: int, peak_lr: float) -> None:
    norm = float(torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]))
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise TrainingError(
            f"step {step + 1} has the loss {loss:g} and a gradient of norm {norm:g}",
            where="training after compression",
            fix=f"Give a lower peak_lr than {peak_lr:g}; at the first step: the model itself gives no finite loss.",
        )
