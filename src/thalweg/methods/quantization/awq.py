"""AWQ: round weights to few bits after inputs that are large on average were given larger weights.

Rounding error of a weight counts in proportion to the input that it meets. With W the weight [out, in] of a linear
layer, x its inputs and Q rounding to the grid, for each set of layers that share their input:

    a_j      = mean |x_j| over the calibration tokens
    s(alpha) = max(a^alpha, 1e-4), divided by sqrt(max s min s)                    alpha = 0, 1/20, ..., 19/20
    alpha*   = argmin  | f(Q(W diag s) diag(1/s)) - f(W) |^2                       f(W): outputs, see below
    W <- W diag s*,  and the operation in front makes x / s*                       (`models.folding`)
    c*       = argmin over c = max|w| (1 - i / 20), i = 0..9, for each row and group, of
               E ((Q(clamp(w, -c, c)) - w) . x)^2,  the group's own inputs and weights only
    W <- Q(clamp(W, -c*, c*))

alpha = 0 is rounding to nearest, so that on the searched loss no set of layers comes out worse than with it. The loss
is not unimodal in alpha: all of the grid is tried. Layers of queries and keys are not clipped, as in the source's code.

Source: "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (2023, arXiv:2306.00978), and
its code. Where this deviates:

- Each block sees, and hands on, what the blocks before it have become; the source calibrates every block with the
  outputs of the original ones.
- f behind a norm is the module that holds the layers, attention or MLP as in the source, but found by where they stand:
  the block where they stand in both (Phi), the layer where the block itself holds it (OPT's MLP). Behind a linear layer
  f is the layer.
- Zero is on the grid. The source's groups of one sign lose their far end: in 2 bits 1, 2, 3, 4 become 1, 2, 3, 3
  there, and 4/3, 8/3, 8/3, 4 here.
- Clipping weighs all calibration tokens, by their second moments; the source takes 512 of them.
- Whether a scale may be folded is measured on the block, not looked up: under grouped queries, or in front of a layer
  behind a GELU, there is no scale, which the notes say. The source puts a division behind such activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from thalweg import catalog
from thalweg.errors import ModelError
from thalweg.models.compression import BlockStep
from thalweg.models.folding import Foldings, Predecessor, multiply
from thalweg.models.head import evaluation_mode
from thalweg.models.input_statistics import AbsoluteMean, Hessian
from thalweg.models.linears import Linear
from thalweg.models.walker import Block
from thalweg.numerics.float_formats import format_of
from thalweg.numerics.number_formats import Format, narrowed, rounded

LEAST_SCALE = 1e-4
MOST_CLIPPED = 0.5
NOT_CLIPPED = ("q_", "k_", "query", "key", "qkv", "c_attn")


class AWQ(BlockStep):
    """Scale by activations, clip, round: `AWQ(bits=4).compress(model, calibration)` changes a model in place.

    Args:
        bits: of a weight.
        group: weights of a row that share a scale; 0, or where it does not divide the inputs, a whole row.
        symmetric: without a zero point.
        ratios: how many alphas are tried; 1 is no scaling.
        clips: how many ranges are tried, down to half of the largest weight; 1 is no clipping.
    """

    def __init__(
        self, bits: int = 4, group: int = 128, symmetric: bool = False, ratios: int = 20, clips: int = 10
    ) -> None:
        options = {"bits": bits, "group": group, "symmetric": symmetric, "ratios": ratios, "clips": clips}
        catalog.lookup("awq").check(options, where="awq")
        self.group, self.ratios, self.clips = group, ratios, clips
        self.format = format_of("int", bits, symmetric)

    def compress_block(self, block: Block) -> dict[str, Any]:
        kept = [name for name, linear in block.linears.items() if linear.fixed.quantized is not None]
        sets = [_Shared(names) for names in block.groups() if not set(names) <= set(kept)]
        block.observe({one.names[0]: one for one in sets})
        foldings = Foldings(block)
        for one in sets:
            one.check(block)
            # All are searched in the block as it was; a layer on a grid of its own can take up no scale.
            one.predecessor = None if set(one.names) & set(kept) else foldings.find(one.names)
            if one.predecessor is not None:
                self._search(block, one)
        for one in sets:
            one.fold(block)
        clipped: dict[str, float] = {}
        for one in sets:
            for name in set(one.names) - set(kept):
                clipped[name] = self._round(block.linears[name], one)
        never_called = set(block.linears) - set(kept) - set(clipped)
        for name in never_called:
            self._round(block.linears[name], None)
        return {
            "sets": [one.found() for one in sets],
            "range_kept": {name: clipped[name] for name in block.linears if name in clipped},
            "left_as_they_were": kept,
        }

    def _search(self, block: Block, shared: _Shared) -> None:
        """Find the alpha with the least loss, and its scale."""
        scales = scales_of(shared.mean.value, self.ratios)
        around = _module_around(shared.names)
        behind_linear = shared.predecessor is not None and shared.predecessor.linear is not None
        if behind_linear or (len(shared.names) == 1 and not around):
            moments = shared.hessian.value
            losses = [self._own_loss(block, shared.names, moments, scale) for scale in scales]
        else:
            losses = self._losses_around(around, block, shared, scales)
        best = min(range(len(losses)), key=losses.__getitem__)  # the first, where several are equal
        shared.ratio, shared.scale = best / self.ratios, scales[best]
        shared.loss, shared.plain_loss = losses[best], losses[0]

    def _own_loss(self, block: Block, names: Sequence[str], moments: Tensor, scale: Tensor) -> float:
        """mean((W' x - W x)^2) over tokens and outputs, from the inputs' second moments."""
        losses = []
        for name in names:
            linear = block.linears[name]
            change = self._trial(linear, scale) - linear.weight.float()
            losses.append(float(((change @ moments) * change).sum(1).mean()))
        return sum(losses) / len(losses)

    def _losses_around(self, inner: str, block: Block, shared: _Shared, scales: Tensor) -> list[float]:
        """The mean squared change of what a module of the block gives, for each scale; a batch of inputs in memory."""
        losses, count = [0.0] * len(scales), 0
        linears = [block.linears[name] for name in shared.names]
        with torch.no_grad(), evaluation_mode(block.module):
            for run in block.runs_of(inner):
                wanted = run().float()
                count += wanted.numel()
                for place, scale in enumerate(scales):
                    with _weights(linears, [self._trial(linear, scale) for linear in linears]):
                        found = run().float()
                    losses[place] += float((found - wanted).square().sum(dtype=torch.float64))
        return [loss / count for loss in losses]

    def _trial(self, linear: Linear, scale: Tensor) -> Tensor:
        """Q(W diag s) diag(1/s) [out, in], float32."""
        scaled = linear.weight.float() * scale
        pieces = scaled.reshape(len(scaled), -1, self._group_of(linear) or scaled.shape[1])
        return self.format.fit(pieces).round(pieces).reshape(scaled.shape) / scale

    def _group_of(self, linear: Linear) -> int:
        return self.group if self.group and linear.shape[1] % self.group == 0 else 0

    def _round(self, linear: Linear, shared: _Shared | None) -> float:
        """Clip and round the weight where it stands; the mean share of its ranges that was kept."""
        weight, group, kept = linear.weight.float(), self._group_of(linear), 1.0
        if group != self.group:
            linear.fixed.notes.append(f"awq: {linear.shape[1]} inputs are no multiple of {self.group}: one scale a row")
        if shared is None:
            linear.fixed.notes.append("awq: no calibration token reached it; rounded to nearest")
        elif shared.scale is None:
            linear.fixed.notes.append("awq: nothing in front to fold a scale into; clipped and rounded only")
        last = linear.name.rpartition(".")[2]
        if shared is not None and not any(part in last for part in NOT_CLIPPED):
            ranges = best_ranges(weight, shared.moments(), self.format, group, self.clips)
            limit = ranges.repeat_interleave(weight.shape[1] // ranges.shape[1], 1)
            largest = weight.abs().reshape(*ranges.shape, -1).amax(-1)
            kept = float(torch.where(largest > 0, ranges / largest, torch.ones_like(ranges)).mean())
            weight = weight.clamp(-limit, limit)
        # Zero is on the grid: what was pruned stays zero.
        linear.quantize(rounded(weight, self.format, group, narrowed(self.format.fit, linear.weight.dtype)))
        return kept


@dataclass
class _Shared:
    """Linear layers with the same input, what is known of it, and what is found for them."""

    names: Sequence[str]

    def __post_init__(self) -> None:
        self.mean, self.hessian = AbsoluteMean(), Hessian()
        self.predecessor: Predecessor | None = None
        self.scale: Tensor | None = None
        self.ratio: float | None = None
        self.loss: float | None = None
        self.plain_loss: float | None = None

    def see(self, inputs: Tensor) -> None:
        self.mean.see(inputs)
        self.hessian.see(inputs)

    def check(self, block: Block) -> None:
        if not bool(torch.isfinite(self.mean.value).all()):
            raise ModelError(
                f"The inputs of {block.name}.{self.names[0]} are not finite.",
                where="awq",
                fix="Check the model before compressing it; in float16 an input may overflow.",
            )

    def fold(self, block: Block) -> None:
        if self.scale is None or self.predecessor is None:
            return
        self.predecessor.divide(self.scale)
        for name in self.names:
            multiply(block.linears[name], self.scale)
        for name in (*self.names, self.predecessor.name):
            if name in block.linears:
                block.rewritten(name)

    def moments(self) -> Tensor:
        """mean(x x^T) [in, in] of the inputs as they are once the scale is folded."""
        moments = self.hessian.value
        return moments if self.scale is None else moments / self.scale / self.scale[:, None]

    def found(self) -> dict[str, Any]:
        return {
            "linears": list(self.names),
            "folded_into": None if self.predecessor is None else self.predecessor.name,
            "ratio": self.ratio,
            "loss": self.loss,
            "loss_without_scale": self.plain_loss,
        }


def _module_around(names: Sequence[str]) -> str:
    """The innermost module of a block that all of these layers stand in; "" for the block."""
    parts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(first for first, *_ in takewhile(lambda part: len(set(part)) == 1, parts))


def scales_of(mean: Tensor, ratios: int = 20) -> Tensor:
    """s(alpha) [ratios, in] of mean |x| [in] for alpha = 0, 1/ratios, ...; max(s) min(s) = 1 in each."""
    alphas = torch.arange(ratios, dtype=torch.float32, device=mean.device) / ratios
    scales = mean.float().pow(alphas[:, None]).clamp_min(LEAST_SCALE)
    return scales / (scales.amax(1, keepdim=True) * scales.amin(1, keepdim=True)).sqrt()


def best_ranges(weight: Tensor, moments: Tensor, format: Format, group: int, clips: int = 10) -> Tensor:
    """The range c [out, groups] that weights are clipped to, for the least error of each row and group.

    Args:
        weight: [out, in], float32.
        moments: mean(x x^T) of the inputs [in, in].
        format: to round to.
        group: weights of a row that share a scale; 0 for all.
        clips: how many ranges are tried.
    """
    rows, columns = weight.shape
    group = group or columns
    pieces = weight.reshape(rows, -1, group)
    starts = range(0, columns, group)
    own = torch.stack([moments[start : start + group, start : start + group] for start in starts])
    largest = pieces.abs().amax(-1)
    best, least = largest, torch.full_like(largest, torch.inf)
    for trial in range(clips):
        limit = largest * (1.0 - MOST_CLIPPED * trial / clips)
        cut = pieces.clamp(-limit[..., None], limit[..., None])
        change = (format.fit(cut).round(cut) - pieces).transpose(0, 1)  # [groups, out, group]
        error = ((change @ own) * change).sum(-1).mT
        better = error < least
        best, least = torch.where(better, limit, best), torch.where(better, error, least)
    return best


@contextmanager
def _weights(linears: Sequence[Linear], values: Sequence[Tensor]) -> Iterator[None]:
    """Other weights [out, in] inside; the layers' own again after it."""
    own = [linear.weight.clone() for linear in linears]
    try:
        for linear, value in zip(linears, values, strict=True):
            linear.weight.copy_(value)
        yield
    finally:
        for linear, value in zip(linears, own, strict=True):
            linear.weight.copy_(value)
