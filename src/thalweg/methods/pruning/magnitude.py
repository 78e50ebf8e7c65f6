"""Prune the weights of smallest magnitude.

    S = |W|

Layer by layer, each matrix [out, in] loses the share of its own that is smallest; globally, one threshold is set for
all matrices of all blocks, and some of them may lose nearly everything. With a pattern N:M, every M consecutive inputs
of a row keep the N largest. What is kept is not changed.

Source: "Learning both Weights and Connections for Efficient Neural Networks" (2015, arXiv:1506.02626), its first half:
the source trains again afterwards, and does all of it several times over.

Deviation: the source's threshold is a multiple of the standard deviation of a layer; a share of the weights is what the
later literature asks for.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from thalweg import catalog
from thalweg.errors import RecipeError
from thalweg.methods.pruning.masks import (
    UNSTRUCTURED,
    Target,
    below_all,
    lowest_of_all,
    of_every,
    sparsity_of,
    target,
    without_lowest,
)
from thalweg.models.compression import BlockStep
from thalweg.models.linears import Linear
from thalweg.models.walker import Block, walk


class Magnitude(BlockStep):
    """`Magnitude(sparsity=0.3).compress(model)` prunes any Hugging Face causal language model in place.

    Args:
        sparsity: share of the weights that is zero afterwards; what was pruned before counts.
        pattern: "unstructured", or "N:M" (N kept of every M), which says the sparsity by itself.
        scope: "layer", every matrix by itself, or "global", one threshold for all of them.

    Raises:
        RecipeError: wrong options.
    """

    calibrated = False

    def __init__(self, sparsity: float = 0.5, pattern: str = UNSTRUCTURED, scope: str = "layer") -> None:
        catalog.lookup("magnitude").check({"sparsity": sparsity, "pattern": pattern, "scope": scope}, where="options")
        self.target = target(sparsity, pattern, "magnitude")
        self.scope = scope
        if scope == "global" and self.target.of:
            raise RecipeError(
                f"a pattern of {pattern} is the same for every row, whatever the scope",
                where="magnitude:scope",
                fix="Leave the scope out.",
            )

    @property
    def by_blocks(self) -> bool:
        return self.scope == "layer"

    def compress_block(self, block: Block) -> dict[str, Any]:
        for linear in block.linears.values():
            self.target.check(linear, block.name)
        for linear in block.linears.values():
            linear.prune(kept(linear, self.target))
        return {"sparsity": {name: sparsity_of(linear) for name, linear in block.linears.items()}}

    def compress(self, model: nn.Module, calibration: Tensor | None = None) -> dict[str, Any]:
        if self.by_blocks:
            return super().compress(model, calibration)
        blocks = [block.linears for block in walk(model, None)]
        linears = [linear for block in blocks for linear in block.values()]
        count = self.target.pruned(sum(linear.weight.numel() for linear in linears))
        masks = lowest_of_all(lambda: (linear.weight.abs().float() for linear in linears), count)
        for linear, keep in zip(linears, masks, strict=True):
            linear.prune(keep)
        return {
            "blocks": [{"sparsity": {name: sparsity_of(linear) for name, linear in block.items()}} for block in blocks]
        }


def kept(linear: Linear, target: Target) -> Tensor:
    """The mask [out, in] of a layer by the magnitude of its weights."""
    scores = below_all(linear.weight.abs().float(), linear.fixed.mask)
    if target.of:
        return of_every(scores, target.kept, target.of)
    return without_lowest(scores.flatten(), target.pruned(scores.numel())).view_as(scores)
