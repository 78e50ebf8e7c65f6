"""Prune the weights whose product of magnitude and input norm is smallest.

    S_ij = |W_ij| sqrt(mean_t x_tj^2)          W [out, in], x_t [in] the layer's own input at token t

Weights are compared within a row (the weights of one output): each row loses floor(sparsity * in), or keeps N of
every M consecutive inputs. What is kept is not changed. A feature of large inputs keeps its weights though they be
small, so scaling an input and its weights by inverse factors, which leaves the function, leaves the mask, too.

All layers of a block are judged by the inputs that they have while the block is dense; the next block is given what the
pruned one puts out.

Source: "A Simple and Effective Pruning Approach for Large Language Models" (2023, arXiv:2306.11695).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thalweg import catalog
from thalweg.methods.pruning.masks import (
    UNSTRUCTURED,
    Target,
    below_all,
    of_every,
    sparsity_of,
    target,
    without_lowest,
)
from thalweg.models.compression import BlockStep
from thalweg.models.input_statistics import SecondMoment
from thalweg.models.linears import Linear
from thalweg.models.walker import Block


class Wanda(BlockStep):
    """`Wanda(sparsity=0.5).compress(model, calibration)` prunes any Hugging Face causal language model in place.

    `calibration` is ordinary text as token windows, int64 [windows, T].

    Args:
        sparsity: share of each row that is zero afterwards; what was pruned before counts.
        pattern: "unstructured", or "N:M" (N kept of every M), which says the sparsity by itself.

    Raises:
        RecipeError: wrong options.
    """

    def __init__(self, sparsity: float = 0.5, pattern: str = UNSTRUCTURED) -> None:
        catalog.lookup("wanda").check({"sparsity": sparsity, "pattern": pattern}, where="options")
        self.target = target(sparsity, pattern, "wanda")

    def compress_block(self, block: Block) -> dict[str, Any]:
        for linear in block.linears.values():
            self.target.check(linear, block.name)
        moments = {name: SecondMoment() for name in block.linears}
        block.observe(moments)
        for name, linear in block.linears.items():
            if moments[name].total is None:
                linear.fixed.notes.append("wanda: no calibration token came here, left as it was")
            else:
                linear.prune(kept(linear, moments[name].value, self.target))
        return {"sparsity": {name: sparsity_of(linear) for name, linear in block.linears.items()}}


def kept(linear: Linear, moment: Tensor, target: Target) -> Tensor:
    """The mask [out, in] of a layer, from mean(x_j^2) [in]."""
    scores = below_all(linear.weight.float().abs() * moment.sqrt(), linear.fixed.mask)
    if target.of:
        return of_every(scores, target.kept, target.of)
    return without_lowest(scores, target.pruned(scores.shape[1]))
