"""Folding: what scales the inputs of linear layers is moved into the operation in front of them.

    y = W x        becomes        y = (W diag(s)) (x / s),      with x / s made by that operation itself

A norm makes x / s when its gain and bias are divided by s, a linear layer when its rows and bias are: behind a norm, or
behind v_proj, up_proj, or a linear layer and a ReLU. Not behind a GELU, where a hidden state is also used elsewhere
(post-norm blocks), where one output serves several inputs (v_proj under grouped queries), or where gains are stored
less one (Gemma).

Which operation that is, is not asked of names but measured, on the block itself: the operations that are called before
the linear layers are tried, latest first, with scales that are powers of two. Those change no bit of the result where
folding is legal, and a good part of it where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thalweg.models.head import evaluation_mode
from thalweg.models.linears import Linear
from thalweg.models.walker import Block

# Share of the effect that scales without folding have, up to which a difference is one of rounding.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Predecessor:
    """The operation whose outputs are the inputs of some linear layers.

    Attributes:
        name: within the block.
        module: a norm, `nn.Linear` or `Conv1D`.
        rows: int64 [in], the outputs of a linear layer that these inputs are made of, in their order; None for all.
    """

    name: str
    module: nn.Module
    rows: Tensor | None = None

    @property
    def linear(self) -> Linear | None:
        """In the form of other linear layers; None for a norm."""
        return None if self.module.weight.ndim == 1 else Linear(self.name, self.module)

    def divide(self, scale: Tensor) -> None:
        """Have it make x / scale, for a scale [in] that the layers behind it take up."""
        linear = self.linear
        weight = self.module.weight.detach() if linear is None else linear.weight  # type: ignore[operator]
        factor = scale.to(weight.device, torch.float32)
        for parameter in (weight, getattr(self.module, "bias", None)):
            if parameter is None:
                continue
            values = parameter.detach()
            rows = slice(None) if self.rows is None else self.rows
            divisor = factor[:, None] if values.ndim == 2 else factor
            values[rows] = (values[rows].float() / divisor).to(values.dtype)


class Foldings:
    """Finds the operations in front of the linear layers of a block.

    Args:
        block: of a walk with calibration inputs; one window of them is what legality is measured on.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self._window = next(block.batches())[:1]
        self._order = self._calls()
        self._heads = next(
            (
                heads
                for module in block.module.modules()
                if (heads := getattr(getattr(module, "config", None), "num_attention_heads", None))
            ),
            0,
        )

    def find(self, names: Sequence[str]) -> Predecessor | None:
        """The operation in front of linear layers that share their input; None where there is none to fold into.

        A linear layer that has been quantized already is none, since its weights must stay on their grid.
        """
        linears = [self.block.linears[name] for name in names]
        before = self._order[: min(self._order.index(name) for name in names)]
        for name in reversed(before):
            for candidate in self._forms(name, linears[0].shape[1]):
                if self._legal(candidate, linears):
                    return candidate
        return None

    def _calls(self) -> list[str]:
        """Norms and linear layers by name, in the order in which they are called."""
        order: list[str] = []
        hooks = [
            module.register_forward_pre_hook(lambda module, arguments, name=name: order.append(name))
            for name, module in self.block.module.named_modules()
            if name in self.block.linears or _is_norm(module)
        ]
        try:
            self._outputs()
        finally:
            for hook in hooks:
                hook.remove()
        return list(dict.fromkeys(order))

    def _outputs(self) -> Tensor:
        with torch.no_grad(), evaluation_mode(self.block.module):
            return self.block.run(self._window.clone()).double()

    def _forms(self, name: str, columns: int) -> list[Predecessor]:
        """The ways in which an operation could make that many inputs."""
        module = self.block.module.get_submodule(name)
        linear = self.block.linears.get(name)
        if linear is None:
            return [Predecessor(name, module)] if module.weight.numel() == columns else []  # type: ignore[operator]
        count = linear.shape[0]
        if linear.fixed.quantized is not None or count < columns:
            return []
        if count == columns:
            return [Predecessor(name, module)]
        # Query, key and value in one layer, or gate and up: one after the other, or in turns, head by head.
        indices = torch.arange(count, device=linear.weight.device)
        rows = [indices[-columns:]]
        if count == 3 * columns and self._heads and columns % self._heads == 0:
            rows.append(indices.reshape(self._heads, 3, -1)[:, 2].flatten())
        return [Predecessor(name, module, choice) for choice in rows]

    def _legal(self, candidate: Predecessor, linears: Sequence[Linear]) -> bool:
        """Whether scales that are folded leave the outputs of the block as they are, bit for bit but for rounding."""
        columns = linears[0].shape[1]
        exponents = torch.randint(-1, 2, (columns,), generator=torch.Generator().manual_seed(columns))
        scale = torch.exp2(exponents.float()).to(linears[0].weight.device)
        wanted = self._outputs()
        changed = [candidate.module, *(linear.module for linear in linears)]
        saved = [(one, one.detach().clone()) for module in changed for one in module.parameters()]
        try:
            for linear in linears:
                multiply(linear, scale)
            effect = float((self._outputs() - wanted).abs().max())
            candidate.divide(scale)
            left = float((self._outputs() - wanted).abs().max())
        finally:
            for parameter, values in saved:
                parameter.detach().copy_(values)
        return effect > 0 and left <= TOLERANCE * effect


def multiply(linear: Linear, scale: Tensor) -> None:
    """W diag(scale), in place."""
    linear.weight.copy_(linear.weight.float() * scale)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1
