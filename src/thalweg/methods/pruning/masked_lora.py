"""Low-rank changes of a weight that leave what was pruned at zero.

A pruned weight W [out, in] has a mask M [out, in] of what is kept. With A [r, in], B [out, r] and s = alpha / r

    form        weight in training       weight afterwards        start
    LoRA        W + s B A                W + s M.(B A)            A uniform, B = 0
    MaskLoRA    W + s M.(B A)            the same                 A uniform, B = 0
    ScaleLoRA   W.(B A)                  the same                 all entries of A and B 1/sqrt(r), so that B A = 1

where . is the product of entries and the uniform distribution is that of Kaiming's rule, U(-1/sqrt(in), 1/sqrt(in)).
Without a mask all is kept, and LoRA is what it always was; with one its last step, called lora_prune in the source,
throws away what fell on pruned weights, and the outputs jump by s (1 - M).(B A) x. The other two have no such jump.

A form is an `nn.Module` from weight to weight, and so may be used with `torch.nn.utils.parametrize`, too:

    register_parametrization(linear, "weight", MaskLoRA(linear.weight, mask, rank=16))

Source: "PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs" (2023, arXiv:2312.15230).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg.models.linears import Linear


class LoRA(nn.Module):
    """W + s B A, and afterwards only the part of it that falls on weights that are kept.

    Args:
        weight: [out, in], for shape and device.
        mask: bool [out, in], True where a weight is kept; None for all.
        rank: r.
        alpha: s = alpha / r.
        generator: draws A, on the CPU; the default one when left out.
    """

    def __init__(
        self,
        weight: Tensor,
        mask: Tensor | None = None,
        rank: int = 16,
        alpha: float = 32.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        rows, columns = weight.shape
        uniform = torch.empty(rank, columns).uniform_(-1.0, 1.0, generator=generator) / math.sqrt(columns)
        self.A = nn.Parameter(uniform.to(weight.device))
        self.B = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.mask, self.scale = mask, alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """The weight [out, in] in training, in float32 at least."""
        return _plus(weight, self.B, self.A, self.scale)

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        """The weight [out, in] afterwards."""
        changed = self.forward(weight)
        return changed if self.mask is None else changed * self.mask

    def outputs(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """inputs [..., in] to [..., out]; B A is never made."""
        change = functional.linear(functional.linear(inputs.to(self.A.dtype), self.A), self.B) * self.scale
        return functional.linear(inputs, weight, bias) + change.to(inputs.dtype)


class MaskLoRA(nn.Module):
    """W + s M.(B A), in training as afterwards. Arguments are those of `LoRA`, with a mask."""

    def __init__(
        self,
        weight: Tensor,
        mask: Tensor,
        rank: int = 16,
        alpha: float = 32.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        start = LoRA(weight, mask, rank, alpha, generator)
        self.A, self.B, self.mask, self.scale = start.A, start.B, mask, start.scale

    def forward(self, weight: Tensor) -> Tensor:
        # W is zero already where M is, so that the sum may be masked whole.
        return _plus(weight, self.B, self.A, self.scale) * self.mask

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        return self.forward(weight)

    def outputs(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(inputs, self.forward(weight).to(weight.dtype), bias)


class ScaleLoRA(nn.Module):
    """W.(B A), in training as afterwards; what W has pruned needs no mask."""

    def __init__(self, weight: Tensor, rank: int = 16) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.A = nn.Parameter(torch.full((rank, columns), rank**-0.5, device=weight.device))
        self.B = nn.Parameter(torch.full((rows, rank), rank**-0.5, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.B @ self.A).to(_working(weight))

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        return self.forward(weight)

    def outputs(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(inputs, self.forward(weight).to(weight.dtype), bias)


Form = LoRA | MaskLoRA | ScaleLoRA


@contextmanager
def adapted(pairs: Sequence[tuple[Linear, Form]]) -> Iterator[None]:
    """Linear layers compute with their forms inside; after it, however it ends, the forms are merged into the weights.

    Only the `forward` of the modules is another inside: classes, parameters and hooks are theirs all the time.
    """
    before = [vars(linear.module).get("forward") for linear, _ in pairs]
    try:
        for linear, form in pairs:
            vars(linear.module)["forward"] = _forward(linear, form)
        yield
    finally:
        for (linear, form), forward in zip(pairs, before, strict=True):
            vars(linear.module).pop("forward", None)
            if forward is not None:
                vars(linear.module)["forward"] = forward
            linear.weight.copy_(form.merged(linear.weight))


def _forward(linear: Linear, form: Form) -> Callable[[Tensor], Tensor]:
    def forward(inputs: Tensor) -> Tensor:
        return form.outputs(inputs, linear.weight, linear.bias)

    return forward


def _working(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _plus(weight: Tensor, B: Tensor, A: Tensor, scale: float) -> Tensor:
    """W + s B A."""
    working = _working(weight)
    return torch.addmm(weight.to(working), B.to(working), A.to(working), alpha=scale)
