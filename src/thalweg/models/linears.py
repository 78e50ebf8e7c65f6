"""The linear layers of a block in one form, whatever class they have: weights [out, in], and what is fixed about them.

Hugging Face models have `nn.Linear` with weights [out, in], and GPT-2's `Conv1D` with weights [in, out]. Methods that
compress weights see the first form only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from thalweg.errors import ModelError
from thalweg.numerics.number_formats import Quantized

_ATTRIBUTE = "_thalweg_fixed"


@dataclass
class Fixed:
    """What compression has decided about a weight, and no later step may undo.

    Attributes:
        mask: bool [out, in], True where a weight is kept; None where nothing was pruned.
        quantized: the grid, and the place of every weight on it; None where nothing was quantized.
        notes: what a reader of the report should know.
    """

    mask: Tensor | None = None
    quantized: Quantized | None = None
    notes: list[str] = field(default_factory=list)


class Linear:
    """A linear layer.

    Attributes:
        name: within its block (or model).
        module: the `nn.Linear` or `Conv1D`.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module

    @property
    def transposed(self) -> bool:
        return isinstance(self.module, Conv1D)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self.weight.shape
        return rows, columns

    @property
    def bias(self) -> Tensor | None:
        return self.module.bias  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """A view [out, in] of the layer's own weights, without gradient."""
        weight = self.module.weight.detach()  # type: ignore[operator]
        return weight.mT if self.transposed else weight

    @property
    def fixed(self) -> Fixed:
        """What has been decided about this layer so far; kept on the module, and in no state dict."""
        if not hasattr(self.module, _ATTRIBUTE):
            object.__setattr__(self.module, _ATTRIBUTE, Fixed())
        return getattr(self.module, _ATTRIBUTE)

    def prune(self, keep: Tensor, weight: Tensor | None = None) -> None:
        """Set what is not kept to zero, and remember it.

        Args:
            keep: bool [out, in]; what was pruned before stays pruned.
            weight: new values of what is kept [out, in]; as they are when left out.
        """
        fixed = self.fixed
        fixed.mask = keep.clone() if fixed.mask is None else fixed.mask & keep
        values = self.weight if weight is None else weight
        self.weight.copy_(values.to(self.weight.dtype) * fixed.mask)
        if fixed.quantized is not None:
            # Zero is on every grid: what is pruned goes there, what is kept stays where it is.
            fixed.quantized = fixed.quantized.zeroed(~fixed.mask)

    def quantize(self, quantized: Quantized) -> None:
        """Take the values of a grid, and remember it. What was pruned must be zero on it."""
        self.fixed.quantized = quantized.compact()
        self.weight.copy_(quantized.values())

    def check_finite(self, inside: str = "") -> None:
        """Raises ModelError where a weight is NaN or infinite; `inside` names the block, where the name does not."""
        if not bool(torch.isfinite(self.weight).all()):
            raise ModelError(
                f"The weights of {inside}{'.' if inside else ''}{self.name} are not finite.",
                where="compress",
                fix="The model is damaged, or overflowed in training; take an earlier checkpoint.",
            )

    def broken(self) -> str | None:
        """What a later step has undone, in words; None where all is as it was decided."""
        fixed, weight = self.fixed, self.weight
        if fixed.mask is not None and bool((weight[~fixed.mask] != 0).any()):
            return f"{self.name}: pruned weights are not zero any more"
        if fixed.quantized is not None and not torch.equal(weight, fixed.quantized.values().to(weight.dtype)):
            return f"{self.name}: quantized weights are not on their grid any more"
        return None


def linears_of(module: nn.Module) -> dict[str, Linear]:
    """The linear layers inside a module by name, in the order of registration."""
    return {
        name: Linear(name, child) for name, child in module.named_modules() if isinstance(child, nn.Linear | Conv1D)
    }
