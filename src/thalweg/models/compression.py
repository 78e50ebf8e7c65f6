"""What compression methods have in common: a step changes a model in place, most of them one block at a time.

A step is a class with `compress(model, calibration) -> dict`: the model is changed in place, what is decided about a
weight is written down by `Linear.prune` and `Linear.quantize`, and what is found on the way is given back as plain
data. Steps compose: each sees what the one before it has left, and none may undo what stands in `Linear.fixed`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from thalweg.errors import ModelError
from thalweg.models.linears import Linear, linears_of
from thalweg.models.walker import Block, named_blocks, walk


class BlockStep(ABC):
    """A step that looks at one block and the calibration inputs in front of it.

    Attributes:
        calibrated: whether it needs calibration inputs.
    """

    calibrated: ClassVar[bool] = True

    @property
    def by_blocks(self) -> bool:
        """Whether `compress` does no more than `compress_block`, block after block.

        Then a session goes through the blocks by itself, and writes each that is done; a step that overrides `compress`
        must say no here.
        """
        return True

    @abstractmethod
    def compress_block(self, block: Block) -> dict[str, Any]:
        """Change the linears of a block; what was found, as plain data."""

    def compress(self, model: nn.Module, calibration: Tensor | None = None) -> dict[str, Any]:
        """Compress all blocks of a causal language model in place.

        Args:
            model: any transformers causal language model.
            calibration: int64 [windows, T]; None for steps that need none.

        Returns:
            {"blocks": what was found in each}.

        Raises:
            ModelError: no blocks, or a step that needs calibration was given none.
        """
        if self.calibrated and calibration is None:
            raise ModelError(
                f"{type(self).__name__} needs calibration inputs.",
                where="compress",
                fix="Give token windows of ordinary text, int64 [windows, T].",
            )
        inputs = calibration if self.calibrated else None
        return {"blocks": [self.compress_block(block) for block in walk(model, inputs)]}


def block_linears(model: nn.Module) -> dict[str, Linear]:
    """The linear layers of all decoder blocks by their names in the model: what compression may touch."""
    return {
        f"{name}.{inner}": Linear(f"{name}.{inner}", linear.module)
        for name, block in named_blocks(model)
        for inner, linear in linears_of(block).items()
    }


def check_kept(model: nn.Module) -> None:
    """Raises AssertionError where a step has undone what an earlier one had decided."""
    broken = [said for linear in block_linears(model).values() if (said := linear.broken())]
    assert not broken, "; ".join(broken[:3])
