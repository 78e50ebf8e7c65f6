"""Quantization column by column: what rounding a column loses is made up for by the columns after it.

For a layer y = W x with H = mean of x x^T over the calibration inputs, damped, and H = (I + F) D (I + F)^T, F strictly
upper triangular (`numerics/hessian_factor.py`), for i = 0 .. n - 1 on all rows at once:

    v_i = w_i - beta (w_i - w0_i)                                         w0: the weights before the first column
    q_i = round(v_i), 0 where pruned
    e   = w0_i - q_i - beta (w_i + v_i - 2 w0_i)
    W[:, i+1:] <- W[:, i+1:] + e F[i, i+1:]

With beta = 0 each step is the best correction there is of the columns that are not rounded yet, for the squared error
of the outputs on the calibration inputs; the papers' recursions, on the inverse of H, are the same ones. Columns are
updated at once within a span of some 128, and behind it when the span is done. The scales of a group are fitted, when
its first column is reached, to the values that would be best for its weights (w, not v); with an order of its own
(largest H_jj first), where a group's columns are not reached together, to the weights before the first column. Groups
are of consecutive inputs either way.

Sources: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022, arXiv:2210.17323)
for beta = 0; "First-Order Error Matters: Accurate Compensation for Quantized Large Language Models" (2025,
arXiv:2507.11017).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thalweg.errors import ModelError
from thalweg.methods.quantization.grids import Grids, roundable, settle
from thalweg.models.input_statistics import Hessian
from thalweg.models.linears import Linear
from thalweg.models.walker import Block
from thalweg.numerics.hessian_factor import HessianFactor, at_best, hessian_factor
from thalweg.numerics.number_formats import Grid, Quantized, rounded

SPAN = 128


def quantized_by_columns(
    weight: Tensor,
    feedback: Tensor,
    grids: Grids,
    group: int,
    keep: Tensor | None = None,
    order: Tensor | None = None,
    beta: float = 0.0,
    span: int = SPAN,
) -> Quantized:
    """A weight rounded column by column.

    Args:
        weight: [out, in], float32 or float64; 0 where it is not kept.
        feedback: F [in, in] of H in that order, the dtype of the weight.
        grids: format and rule for scales.
        group: columns a scale.
        keep: bool [out, in], False where a weight stays 0; None keeps all.
        order: int64 [in], the columns in the order in which they are rounded; None: as they are.
        beta: the pull towards the weights before.
        span: columns that are updated at once; the result does not depend on it but for rounding.
    """
    count = weight.shape[1]
    places = torch.arange(count, device=weight.device) if order is None else order
    original = weight.mT[places].contiguous()  # rows are columns of the weight from here on
    kept = None if keep is None else keep.mT[places]
    latent, elements = original.clone(), torch.empty_like(original)
    found = {} if order is None else _before(weight, grids, group)
    tensor_scale = grids.format.tensor_scale(weight)
    groups = (places // group).tolist()
    for start, stop in _spans(count, group, span):
        errors = torch.empty_like(latent[start:stop])
        for i in range(start, stop):
            place, column = groups[i], latent[i].lerp(original[i], beta) if beta else latent[i]
            if place not in found:
                ahead = slice(i, i + group)
                best = original[ahead].mT
                if i:  # some are settled in front of it
                    best = at_best(best, latent[ahead].mT, feedback[ahead, ahead])
                found[place] = _fitted(grids, best if kept is None else best * kept[ahead].mT, tensor_scale)
            elements[i] = found[place].elements(column)
            value = found[place].values(elements[i])
            error = torch.sub(original[i], value if kept is None else value * kept[i], out=errors[i - start])
            if beta:
                error -= beta * (latent[i] + column - 2.0 * original[i])
            latent[i + 1 : stop].addr_(feedback[i, i + 1 : stop], error)
        latent[stop:].addmm_(feedback[start:stop, stop:].mT, errors)
    back = torch.empty_like(places)
    back[places] = torch.arange(count, device=weight.device)
    quantized = _together(elements[back].mT.contiguous(), [found[place] for place in range(len(found))], group)
    return quantized if keep is None else quantized.zeroed(~keep)


def _together(elements: Tensor, grids: list[Grid], group: int) -> Quantized:
    """Elements [out, in] and the grids of the groups, one after the other."""
    zeros = [grid.zero for grid in grids if grid.zero is not None]
    return Quantized(
        grids[0].format,
        elements,
        torch.stack([grid.scale for grid in grids], 1),
        torch.stack(zeros, 1) if zeros else None,
        torch.arange(elements.shape[1], device=elements.device) // group,
        grids[0].tensor_scale,
    )


def _spans(count: int, group: int, span: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of spans that end where a group begins, or lie in one: a group's scales see all updates."""
    whole = group * max(1, span // group)
    for outer in range(0, count, whole):
        for start in range(outer, min(outer + whole, count), span):
            yield start, min(start + span, outer + whole, count)


def _before(weight: Tensor, grids: Grids, group: int) -> dict[int, Grid]:
    """The grids of all groups of a weight as it is."""
    fixed = rounded(weight, grids.format, group, grids.fit).grid
    return {
        place: Grid(
            fixed.format,
            fixed.scale[:, place],
            None if fixed.zero is None else fixed.zero[:, place],
            fixed.tensor_scale,
        )
        for place in range(fixed.scale.shape[1])
    }


def _fitted(grids: Grids, weights: Tensor, tensor_scale: Tensor | None) -> Grid:
    """The grid of a group of weights [out, g]."""
    grid = grids.fit(weights, tensor_scale)
    return Grid(
        grid.format, grid.scale.squeeze(-1), None if grid.zero is None else grid.zero.squeeze(-1), grid.tensor_scale
    )


class _Inputs(NamedTuple):
    """The second moments of what some linears are given, the order of columns that follows, and their factor in it."""

    hessian: Tensor
    order: Tensor | None
    factor: HessianFactor


@dataclass(frozen=True)
class Columns:
    """How blocks are gone through.

    Attributes:
        name: of the method, for messages.
        grids: what weights are rounded to.
        damping: share of the mean of H's diagonal that is added to it.
        act_order: columns with the largest H_jj first.
        true_sequential: linears of a block one after the other, each seeing those before it rounded.
        beta: the pull towards the weights before.
    """

    name: str
    grids: Grids
    damping: float
    act_order: bool
    true_sequential: bool
    beta: float = 0.0

    def compress_block(self, block: Block) -> dict[str, Any]:
        """Quantize the linears of a block."""
        together = block.groups()
        reached = {name for names in together for name in names}
        together += [[name] for name in block.linears if name not in reached]
        found: dict[str, Any] = {}
        for stage in [[names] for names in together] if self.true_sequential else [together]:
            # Linears with one input have one Hessian.
            hessians = {names[0]: Hessian() for names in stage}
            block.observe(hessians)
            for names in stage:
                shared = self._factored(hessians[names[0]], names, f"{self.name}, {block.name}")
                for name in names:
                    found[name] = self._quantize(block.linears[name], shared, f"{self.name}, {block.name}")
        return {"name": block.name, "linears": {name: found[name] for name in block.linears}}

    def _factored(self, inputs: Hessian, names: Sequence[str], where: str) -> _Inputs | None:
        """What linears with one input have in common; None where no calibration input reached them."""
        if not inputs.tokens:
            return None
        hessian = inputs.value
        order = hessian.diagonal().argsort(descending=True, stable=True) if self.act_order else None
        try:
            factor = hessian_factor(hessian if order is None else hessian[order][:, order], self.damping)
        except ValueError as error:
            raise ModelError(
                f"{', '.join(names)}: {error}.",
                where=where,
                fix="Check the model and the calibration text, or raise damping.",
            ) from None
        return _Inputs(hessian, order, factor)

    def _quantize(self, linear: Linear, inputs: _Inputs | None, where: str) -> dict[str, Any]:
        weight, keep = roundable(linear, where)
        grids = self.grids.stored_in(linear.weight.dtype)
        if inputs is None:
            quantized, notes = grids.nearest(weight, keep)
            return settle(linear, quantized, [*notes, "no calibration input reached it: rounded to nearest"])
        group, notes = grids.group_for(weight.shape[1])
        dead, damping = int(inputs.factor.dead.sum()), inputs.factor.damping
        if damping != self.damping:
            notes.append(f"the Hessian is singular: damping raised from {self.damping:g} to {damping:g}")
        if dead:
            notes.append(f"{dead} inputs were always zero: their weights are rounded to nearest")
        quantized = quantized_by_columns(weight, inputs.factor.feedback, grids, group, keep, inputs.order, self.beta)
        return settle(linear, quantized, notes) | {
            "output_error": _output_error(quantized.values() - weight, weight, inputs.hessian),
            "damping": damping,
        }


def _output_error(change: Tensor, weight: Tensor, hessian: Tensor) -> float:
    """Mean squared change of the outputs over their mean square, on the calibration inputs."""
    whole = float(((weight @ hessian) * weight).sum(dtype=torch.float64))
    return float(((change @ hessian) * change).sum(dtype=torch.float64)) / whole if whole else 0.0
