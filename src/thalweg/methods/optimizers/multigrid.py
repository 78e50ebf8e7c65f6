"""Multigrid training on texts: short sequences in many rows first, long ones in few rows at the end.

A batch of B windows of T tokens is cut into B k windows of T / k tokens: the same tokens with the same targets, and
attention, whose cost a token grows with the length, becomes cheaper.

    long cycle    k = 8, 4, 2, 1, a quarter of the cycle each; `cycles` times, then k = 1 for the share `final`
    short cycle   k = 4, 2 and the long cycle's, from step to step; never longer windows than the long cycle's
    rate          multiplied with k^lr_exponent of the long cycle

Source: "A Multigrid Method for Efficiently Training Video Models" (2019, arXiv:1912.00998), whose shapes are in
`multigrid_shapes`. The use on texts is ours, and deviates: there is one axis to coarsen, the length. A clip of any
shape has one label, so there a coarse batch has more labels and a larger rate; here every token is one, so a batch of
every shape has the same number, and `lr_exponent` is 0 (1 is the source's linear rule). The factors of the short cycle
are those of the source's areas.

What it can save follows from the FLOPs a token, 6 (N + V d) + 6 L d T for a model of N parameters and L layers of width
d with V words: the last term falls with T. With T near d or below there is little to save.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thalweg import catalog
from thalweg.models.ladder import flops_per_token

LONG, SHORT = (8, 4, 2, 1), (4, 2, 1)


def pieces_at(progress: float, cycles: int = 1, final: float = 0.25) -> int:
    """Into how many pieces the long cycle cuts windows once `progress` of the budget is spent."""
    if progress >= 1.0 - final:
        return 1
    place = progress / (1.0 - final) * cycles % 1.0
    # Progress is rounded: three eighths of the budget may be a hair less.
    return LONG[min(int(place * len(LONG) + 1e-9), len(LONG) - 1)]


def pieces_in_step(step: int, pieces: int) -> int:
    """Into how many pieces the short cycle cuts windows at a step, within a stage of `pieces` of the long cycle."""
    return max(SHORT[step % len(SHORT)], pieces)


def fitting(pieces: int, length: int) -> int:
    """The largest number of equal pieces up to `pieces` that a window of `length` tokens can be cut into."""
    return next(count for count in range(pieces, 0, -1) if length % count == 0)


def cut(batch: dict[str, Tensor], pieces: int) -> dict[str, Tensor]:
    """Every [B, T] of a batch as [B pieces, T / pieces]; pieces of a window are neighbours."""
    return {key: value.reshape(len(value) * pieces, -1) for key, value in batch.items()}


class Multigrid:
    """A callback that reshapes the batch; tokens a step stay, the FLOPs that the clock counts follow the shape.

    The shape of a step is decided by the clock before it, so a resumed run goes on with the right one.

    Args:
        long: run the long cycle.
        short: run the short cycle.
        cycles: long cycles a run.
        final: share of the budget at whole windows after the last cycle.
        lr_exponent: power of the long cycle's rows that the rate is multiplied with.
    """

    def __init__(
        self, long: bool = True, short: bool = True, cycles: int = 1, final: float = 0.25, lr_exponent: float = 0.0
    ) -> None:
        options = {"long": long, "short": short, "cycles": cycles, "final": final, "lr_exponent": lr_exponent}
        catalog.lookup("multigrid").check(options, where="multigrid")
        self.long, self.short, self.cycles, self.final, self.lr_exponent = long, short, cycles, final, lr_exponent
        self._pieces, self._rows = 1, 1
        self._flops: dict[int, float] = {}
        self._borrowed: tuple[int, float] | None = None

    def setup(self, trainer: Any) -> None:
        """Learn what a step of each shape costs, and choose the first one."""
        context = trainer.plan["context"]
        whole = flops_per_token(trainer.model, context=context)
        for pieces in {fitting(wanted, context) for wanted in LONG}:
            share = flops_per_token(trainer.model, context=context // pieces) / whole
            self._flops[pieces] = trainer.step_flops * share
        self._choose(trainer)

    def _choose(self, trainer: Any) -> None:
        """The shape of the next step, told to the clock before that step begins."""
        clock, context = trainer.clock, trainer.plan["context"]
        wanted = pieces_at(clock.progress, self.cycles, self.final) if self.long else 1
        self._rows = fitting(wanted, context)
        self._pieces = fitting(pieces_in_step(clock.step, wanted), context) if self.short else self._rows
        trainer.step_flops = self._flops[self._pieces]

    def batch(self, trainer: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch in this step's shape; a forward pass takes as many tokens as before."""
        trainer.metrics["sequence_length"] = batch["targets"].shape[1] // self._pieces
        self._borrowed = (trainer.plan["micro_batch"], trainer.lr_scale)
        trainer.plan["micro_batch"] *= self._pieces
        return cut(batch, self._pieces)

    def raw_gradients(self, trainer: Any, batch: dict[str, Tensor]) -> None:
        """The rate is asked for next."""
        trainer.lr_scale *= float(self._rows) ** self.lr_exponent

    def step(self, trainer: Any) -> None:
        """Give back what was changed for this step, before evaluations and checkpoints look at it."""
        if self._borrowed is not None:
            trainer.plan["micro_batch"], trainer.lr_scale = self._borrowed
            self._borrowed = None
        self._choose(trainer)

    skipped = step

    def state_dict(self) -> dict[str, Any]:
        """The shape of the next step."""
        return {"pieces": self._pieces, "rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._pieces, self._rows = state["pieces"], state["rows"]
