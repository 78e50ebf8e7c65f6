"""The two halves of a decoder block, attention and MLP, found in any model whose blocks add them to a residual stream.

    sequential      x' = x + a(N1(x)),   y = x' + m(N2(x'))          Llama, Qwen, Mistral, GPT-2, OPT
    parallel        y  = x + a(N1(x)) + m(N2(x))                     GPT-NeoX, GPT-J, Phi

Which child of a block is which is read from names, and then measured before anybody relies on it: that y = x + a + m,
that each half gives nothing once its linear layers are zero, and whether the MLP sees what attention has added. Blocks
of another kind (norms behind the halves, scaled branches, experts that are no linear layers) raise an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import ModelError
from thalweg.models.head import evaluation_mode
from thalweg.models.linears import Linear, linears_of
from thalweg.models.walker import Block

ATTENTION, MLP = "attention", "mlp"


@dataclass(frozen=True)
class Sublayer:
    """Attention or MLP of a block.

    Attributes:
        kind: "attention" or "mlp".
        modules: the block's children that it consists of, by name: one module, or linear layers called one after the
            other (OPT's fc1 and fc2).
    """

    kind: str
    modules: dict[str, nn.Module]

    @property
    def entry(self) -> nn.Module:
        return next(iter(self.modules.values()))

    @property
    def exit(self) -> nn.Module:
        """What the residual stream is given."""
        return next(reversed(self.modules.values()))

    @property
    def linears(self) -> list[Linear]:
        return [
            Linear(f"{name}.{inner}".rstrip("."), linear.module)
            for name, module in self.modules.items()
            for inner, linear in linears_of(module).items()
        ]

    @property
    def parameters(self) -> int:
        """Weights and biases of its linear layers."""
        return sum(value.numel() for linear in self.linears for value in linear.module.parameters())

    @property
    def gone(self) -> bool:
        """Whether all of it is zero already."""
        return not any(bool(value.any()) for linear in self.linears for value in linear.module.parameters())


@dataclass(frozen=True)
class Stream:
    """What went through a block: hidden states [windows, T, width] each.

    Attributes:
        before: in front of the block.
        attention: what attention added.
        mlp: what the MLP added.
        after: behind the block.
        seen: what the first module of the MLP was given, in its own shape.
    """

    before: Tensor
    attention: Tensor
    mlp: Tensor
    after: Tensor
    seen: Tensor


def sublayers_of(block: nn.Module, where: str = "block") -> tuple[Sublayer, Sublayer]:
    """Attention and MLP of a block.

    Args:
        block: of a causal language model.
        where: its name, for errors.

    Raises:
        ModelError: not exactly one attention, and beside it one MLP.
    """
    children = {
        name: child for name, child in block.named_children() if any(value.ndim > 1 for value in child.parameters())
    }
    attention = {name: child for name, child in children.items() if _attends(name, child)}
    rest = {name: child for name, child in children.items() if name not in attention}
    plain = all(linears_of(child).keys() == {""} for child in rest.values())
    if len(attention) != 1 or not rest or (len(rest) > 1 and not plain):
        found = ", ".join(f"{name} ({type(child).__name__})" for name, child in children.items())
        raise ModelError(
            f"A block that consists of {found or 'nothing with weights'} is not one attention and one MLP.",
            where=where,
            fix="Drop whole blocks instead, what=block.",
        )
    return Sublayer(ATTENTION, attention), Sublayer(MLP, rest)


def _attends(name: str, module: nn.Module) -> bool:
    said = f"{name} {type(module).__name__}".lower()
    return "attn" in said or "attention" in said


def stream_of(block: Block, halves: tuple[Sublayer, Sublayer], hidden: Tensor) -> Stream:
    """Run a block, in the mode it is in, and keep what its halves add."""
    found: dict[str, Tensor] = {}

    def added(kind: str) -> Any:
        def hook(module: nn.Module, arguments: tuple, output: Any) -> None:
            found[kind] = output[0] if isinstance(output, tuple) else output

        return hook

    def seen(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        found["seen"] = arguments[0] if arguments else keywords["hidden_states"]

    hooks = [half.exit.register_forward_hook(added(half.kind)) for half in halves]
    hooks.append(halves[1].entry.register_forward_pre_hook(seen, with_kwargs=True))
    try:
        after = block.run(hidden)
    finally:
        for hook in hooks:
            hook.remove()
    # OPT's MLP sees all windows as one row of tokens.
    attention, mlp = (found[kind].reshape(after.shape) for kind in (ATTENTION, MLP))
    return Stream(hidden, attention, mlp, after, found["seen"])


def is_parallel(block: Block, halves: tuple[Sublayer, Sublayer]) -> bool:
    """Whether the MLP of a block does not see what its attention adds; measured on one window of calibration.

    Raises:
        ModelError: the block is not its input plus attention plus MLP, or a half is more than its linear layers.
    """
    window = next(block.batches())[:1]
    with torch.no_grad(), evaluation_mode(block.module):
        whole = stream_of(block, halves, window)
        _check_sum(block, halves, whole)
        quiet = []
        for half in halves:
            with _silenced(half):
                quiet.append(stream_of(block, halves, window))
            if bool(getattr(quiet[-1], half.kind).any()):
                raise ModelError(
                    f"{_named(half)} of a block still adds something when all its linear layers are zero.",
                    where=block.name,
                    fix="Drop whole blocks instead, what=block.",
                )
    return torch.equal(whole.seen, quiet[0].seen)


def _check_sum(block: Block, halves: tuple[Sublayer, Sublayer], found: Stream) -> None:
    if not bool(torch.isfinite(found.after).all()):
        raise ModelError(
            "The outputs of a block are not finite.",
            where=block.name,
            fix="The model's weights hold NaN or overflow; check the model before compressing it.",
        )
    parts = torch.stack([found.before, found.attention, found.mlp]).double()
    size = float(parts.abs().sum(0).max())
    error = float((parts.sum(0) - found.after.double()).abs().max())
    if error > 8 * torch.finfo(found.after.dtype).eps * size:
        children = ", ".join(f"{name} ({type(child).__name__})" for name, child in block.module.named_children())
        raise ModelError(
            f"The output is not the input plus what {_named(halves[0])} and {_named(halves[1])} give: it differs by "
            f"{error:.2g} of {size:.2g}. The block consists of {children}.",
            where=block.name,
            fix="Blocks with norms behind their halves or scaled branches can be dropped whole only: what=block.",
        )


def _named(half: Sublayer) -> str:
    return " and ".join(half.modules)


@contextmanager
def _silenced(half: Sublayer) -> Iterator[None]:
    """All weights and biases of its linear layers are zero inside, and what they were after it."""
    values = [value for linear in half.linears for value in linear.module.parameters()]
    before = [value.detach().clone() for value in values]
    try:
        for value in values:
            value.detach().zero_()
        yield
    finally:
        for value, old in zip(values, before, strict=True):
            value.detach().copy_(old)
