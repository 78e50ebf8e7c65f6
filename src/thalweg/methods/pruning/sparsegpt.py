"""Prune column by column, and let the columns to the right make up for what each has lost.

With the layer's damped Hessian H = mean x x^T + d mean(diag) I [in, in] = (I + F) D (I + F)^T, F strictly upper
triangular (`numerics/hessian_factor.py`), the optimal brain surgeon's formulas for weights W that were W0, and whose
columns to the left are settled, are

    score_ij = B_ij^2 D_j                           what pruning it costs (twice), B what would be best for it now
    e = W0_ij - W_ij, with W_ij = 0 where pruned    W_ik += e F_jk for k > j: the best answer of those to the right

The mask is chosen for 128 columns at a time, the lowest share of out x 128; with a pattern N:M for every M columns,
with the columns to the left settled already. Costs O(in^3 + out in^2), memory in^2.

All layers of a block are judged by the inputs that they have while the block is dense; the next block is given what the
pruned one puts out.

Source: "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (2023, arXiv:2301.00774).

Deviations: exact counts (`masks.py`). Weights of inputs that are always zero go first, and stay as they are where they
are kept; official code sets all of them to zero. What was pruned before is pruned again, and made up for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thalweg import catalog
from thalweg.errors import ModelError, RecipeError
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
from thalweg.models.input_statistics import Hessian
from thalweg.models.linears import Linear
from thalweg.models.walker import Block
from thalweg.numerics.hessian_factor import HessianFactor, at_best, hessian_factor


class SparseGPT(BlockStep):
    """`SparseGPT(sparsity=0.5).compress(model, calibration)` prunes any Hugging Face causal language model in place.

    `calibration` is ordinary text as token windows, int64 [windows, T]; better more tokens than the widest layer has
    inputs.

    Args:
        sparsity: share of the weights that is zero afterwards; what was pruned before counts.
        pattern: "unstructured", or "N:M" (N kept of every M), which says the sparsity by itself.
        damping: of the Hessian, as a share of the mean of its diagonal.
        columns: for which a mask is chosen at once.

    Raises:
        RecipeError: wrong options.
    """

    def __init__(
        self, sparsity: float = 0.5, pattern: str = UNSTRUCTURED, damping: float = 0.01, columns: int = 128
    ) -> None:
        options: dict[str, catalog.Value] = {"sparsity": sparsity, "pattern": pattern}
        options |= {"damping": damping, "columns": columns}
        catalog.lookup("sparsegpt").check(options, where="options")
        self.target = target(sparsity, pattern, "sparsegpt")
        self.damping, self.columns = damping, columns
        if self.target.of and columns % self.target.of:
            raise RecipeError(
                f"{columns} columns are no multiple of {self.target.of}",
                where="sparsegpt:columns",
                fix=f"With a pattern of {pattern} give a multiple of {self.target.of}.",
            )

    def compress_block(self, block: Block) -> dict[str, Any]:
        for linear in block.linears.values():
            self.target.check(linear, block.name)
            _check_free(linear, block.name)
        damping = {}
        for names, hessian in _hessians(block):
            if hessian is None:
                block.linears[names[0]].fixed.notes.append("sparsegpt: no calibration token came here, left as it was")
                continue
            factor = _factor(hessian, self.damping, f"{block.name}.{names[0]}")
            for name in names:
                linear = block.linears[name]
                if factor.damping != self.damping:
                    said = f"the Hessian is singular: damping raised from {self.damping:g} to {factor.damping:g}"
                    linear.fixed.notes.append(f"sparsegpt: {said}")
                linear.prune(*solve(linear.weight.float(), factor, self.target, self.columns, linear.fixed.mask))
                damping[name] = factor.damping
        sparsity = {name: sparsity_of(linear) for name, linear in block.linears.items()}
        return {"sparsity": sparsity, "damping": damping}


def solve(
    weight: Tensor, factor: HessianFactor, target: Target, columns: int = 128, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask [out, in] and the weights [out, in] that go with it.

    Args:
        weight: [out, in], in the type of the factor; not changed.
        factor: of the layer's Hessian.
        target: what to prune.
        columns: for which a mask is chosen at once; with a pattern N:M a multiple of M.
        before: bool [out, in], False where a weight was pruned already.
    """
    original, weight, feedback = weight, weight.clone(), factor.feedback
    rows, width = weight.shape
    keep = torch.ones_like(weight, dtype=torch.bool) if before is None else before.clone()
    for start in range(0, width, columns):
        stop = min(start + columns, width)
        block, mask = weight[:, start:stop], keep[:, start:stop]
        cost = factor.cost[start:stop].masked_fill(factor.dead[start:stop], 0.0)
        errors = torch.empty_like(block)
        if not target.of:
            best = at_best(original[:, start:stop], block, feedback[start:stop, start:stop])
            scores = below_all(best.square() * cost, mask)
            # As differences, so that their sum over the blocks is exact.
            count = target.pruned(rows * stop) - target.pruned(rows * start)
            mask &= without_lowest(scores.flatten(), count).view_as(scores)
        for column in range(stop - start):
            if target.of and column % target.of == 0:
                piece, ahead = slice(column, column + target.of), slice(start + column, start + column + target.of)
                best = at_best(original[:, ahead], block[:, piece], feedback[ahead, ahead])
                scores = below_all(best.square() * cost[piece], mask[:, piece])
                mask[:, piece] &= of_every(scores, target.kept, target.of)
            block[:, column] *= mask[:, column]
            errors[:, column] = original[:, start + column] - block[:, column]
            block[:, column + 1 :].addr_(errors[:, column], feedback[start + column, start + column + 1 : stop])
        weight[:, stop:].addmm_(errors, feedback[start:stop, stop:])
    return keep, weight


def _hessians(block: Block) -> list[tuple[list[str], Tensor | None]]:
    """Second moments of inputs, one for all layers that are given the same."""
    groups = block.groups()
    called = {name for group in groups for name in group}
    groups += [[name] for name in block.linears if name not in called]
    found = [(names, Hessian()) for names in groups]
    block.observe({names[0]: hessian for names, hessian in found})
    return [(names, None if hessian.total is None else hessian.value) for names, hessian in found]


def _factor(hessian: Tensor, damping: float, name: str) -> HessianFactor:
    try:
        return hessian_factor(hessian, damping)
    except ValueError as error:
        raise ModelError(
            f"The inputs of {name} cannot be used: {error}.",
            where="sparsegpt",
            fix="Give more calibration text, or look for weights that overflow.",
        ) from error


def _check_free(linear: Linear, inside: str) -> None:
    """Raises ModelError where the weights are on a grid, off which they would be moved."""
    if linear.fixed.quantized is not None:
        raise ModelError(
            f"{inside}.{linear.name} is quantized already, and sparsegpt would move its weights off their grid.",
            where="sparsegpt",
            fix="Put sparsegpt before the quantizer; after one, wanda and magnitude can prune.",
        )
