"""Walk through a causal language model block by block, with calibration inputs, to compress each block where it stands.

    for block in walk(model, calibration):
        moments = block.observe({name: SecondMoment() for name in block.linears})
        ...                                   change the weights of block.linears

Hidden states of all calibration windows stand in front of the current block. When the loop goes on, they are put
through the block as it has become, so that the next one sees what the compressed model will give it. They lie in a file
that is mapped into memory, so that memory is bounded by a batch, however much calibration there is; statistics of
inputs are running sums. Same model, same calibration, same result, bit for bit.

Blocks are those of any Hugging Face causal language model: what the model passes to each of them beside the hidden
states (masks, positions) is recorded once and passed again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from thalweg.errors import ModelError
from thalweg.models.blocks import decoder_blocks
from thalweg.models.head import evaluation_mode
from thalweg.models.linears import Linear, linears_of

BATCH_TOKENS = 4096


class Observer(Protocol):
    def see(self, inputs: Tensor) -> None:
        """Take in the inputs [tokens, in] of a linear layer, float32."""


@dataclass
class SecondMoment:
    """mean(x_j^2) of every input: [in] float32."""

    total: Tensor | None = None
    tokens: int = 0

    def see(self, inputs: Tensor) -> None:
        found = inputs.square().sum(0)
        self.total = found if self.total is None else self.total + found
        self.tokens += len(inputs)

    @property
    def value(self) -> Tensor:
        assert self.total is not None, "no inputs were seen"
        return self.total / self.tokens


@dataclass
class AbsoluteMean:
    """mean(|x_j|) of every input: [in] float32."""

    total: Tensor | None = None
    tokens: int = 0

    def see(self, inputs: Tensor) -> None:
        found = inputs.abs().sum(0)
        self.total = found if self.total is None else self.total + found
        self.tokens += len(inputs)

    @property
    def value(self) -> Tensor:
        assert self.total is not None, "no inputs were seen"
        return self.total / self.tokens


@dataclass
class Hessian:
    """mean(x x^T): [in, in] float32."""

    total: Tensor | None = None
    tokens: int = 0

    def see(self, inputs: Tensor) -> None:
        if self.total is None:
            self.total = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
        self.total.addmm_(inputs.mT, inputs)
        self.tokens += len(inputs)

    @property
    def value(self) -> Tensor:
        assert self.total is not None, "no inputs were seen"
        return self.total / self.tokens


@dataclass
class _OutputError:
    """|x W'^T - x W^T|^2 over |x W^T|^2, summed over tokens."""

    before: Tensor
    after: Tensor
    lost: float = 0.0
    whole: float = 0.0

    def see(self, inputs: Tensor) -> None:
        self.lost += float((inputs @ (self.after.float() - self.before.float()).mT).square().sum(dtype=torch.float64))
        self.whole += float((inputs @ self.before.float().mT).square().sum(dtype=torch.float64))


class Block:
    """One decoder block, and the calibration inputs in front of it.

    Attributes:
        index: from 0 on.
        count: how many blocks the model has.
        name: of its module in the model, such as "model.layers.3".
        module: the block.
        linears: its linear layers by name, within the block.
        errors: once the walk has gone on, of each linear whose weights have changed: the squared error of its outputs
            on the calibration inputs that now reach it, over their squared length.
    """

    def __init__(
        self, index: int, count: int, name: str, module: nn.Module, hidden: _Hidden | None, named: dict
    ) -> None:
        self.index, self.count, self.name, self.module = index, count, name, module
        self.linears: dict[str, Linear] = linears_of(module)
        self.errors: dict[str, float] = {}
        self._inputs, self._named = hidden, named
        self._before = {name: linear.weight.clone() for name, linear in self.linears.items()}

    @property
    def _hidden(self) -> _Hidden:
        assert self._inputs is not None, "this walk has no calibration inputs"
        return self._inputs

    # -- what methods ask for -------------------------------------------------------------------------------------

    def before(self, name: str) -> Tensor:
        """The weight [out, in] of a linear as it was when the walk came to this block."""
        return self._before[name]

    def batches(self) -> Iterator[Tensor]:
        """The hidden states in front of the block, [windows, T, width] at a time; a copy that may be changed."""
        for start in range(0, len(self._hidden.states), self._hidden.windows):
            yield self._hidden.read(start)

    def run(self, hidden: Tensor) -> Tensor:
        """The block's outputs [windows, T, width] for hidden states of that shape, with gradient where enabled."""
        found = self.module(hidden, **_as_many(self._named, len(hidden)))
        return found[0] if isinstance(found, tuple) else found

    def observe(self, observers: Mapping[str, Observer]) -> None:
        """Put the calibration through the block once, and hand each linear's inputs [tokens, in] to its observer."""
        with torch.no_grad(), evaluation_mode(self.module), self._seen_by(observers):
            for hidden in self.batches():
                self.run(hidden)

    def groups(self) -> list[list[str]]:
        """Names of linears in the order in which they are called, those that are given the same input together."""
        found: list[tuple[Tensor, list[str]]] = []

        def look(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: tuple) -> None:
                for given, names in found:
                    # The tensor is held, so that its memory cannot become another's.
                    if given is arguments[0] or (
                        given.data_ptr() == arguments[0].data_ptr() and given.shape == arguments[0].shape
                    ):
                        names.append(name)
                        return
                found.append((arguments[0], [name]))

            return hook

        hooks = [linear.module.register_forward_pre_hook(look(name)) for name, linear in self.linears.items()]
        try:
            with torch.no_grad(), evaluation_mode(self.module):
                self.run(self._hidden.read(0)[:1])
        finally:
            for hook in hooks:
                hook.remove()
        return [names for _, names in found]

    # -- going on -------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Replace the hidden states by the block's outputs, and measure `errors`."""
        observers = {
            name: _OutputError(before, self.linears[name].weight)
            for name, before in self._before.items()
            if not torch.equal(before, self.linears[name].weight)
        }
        with torch.no_grad(), evaluation_mode(self.module), self._seen_by(observers):
            for start in range(0, len(self._hidden.states), self._hidden.windows):
                self._hidden.write(start, self.run(self._hidden.read(start)))
        self.errors = {name: one.lost / one.whole if one.whole else 0.0 for name, one in observers.items()}
        self._before = {}

    @contextmanager
    def _seen_by(self, observers: Mapping[str, Observer]) -> Iterator[None]:
        def hook_of(observer: Observer) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: tuple) -> None:
                observer.see(arguments[0].detach().reshape(-1, arguments[0].shape[-1]).float())

            return hook

        hooks = [self.linears[name].module.register_forward_pre_hook(hook_of(one)) for name, one in observers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def walk(model: nn.Module, calibration: Tensor | None, start: int = 0) -> Iterator[Block]:
    """The blocks of a model one after the other, each with the calibration inputs that the blocks before it give.

    Args:
        model: any transformers causal language model.
        calibration: int64 [windows, T], whole windows without padding; None gives blocks without inputs.
        start: blocks before this one are gone through but not given out: they were changed before.

    Raises:
        ModelError: the model has no decoder blocks that can be found, or its hidden states are not finite.
    """
    blocks = named_blocks(model)
    if calibration is None:
        for index, (name, module) in enumerate(blocks[start:], start):
            yield Block(index, len(blocks), name, module, None, {})
        return
    with tempfile.TemporaryDirectory(prefix="thalweg-") as folder:
        hidden, named = _in_front(model, [block for _, block in blocks], calibration, Path(folder))
        for index, (name, module) in enumerate(blocks):
            block = Block(index, len(blocks), name, module, hidden, named[index])
            if index >= start:
                yield block
            block.advance()
            if not hidden.finite():
                raise ModelError(
                    f"The outputs of {name} are not finite.",
                    where="block walker",
                    fix="The model's weights hold NaN or overflow; check the model before compressing it.",
                )


def named_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The decoder blocks with their names in the model.

    Raises:
        ModelError: there is no list of modules with linear layers in it.
    """
    blocks = decoder_blocks(model)
    if not blocks or not all(linears_of(block) for block in blocks):
        raise ModelError(
            f"{type(model).__name__} has no decoder blocks that can be recognised.",
            where="block walker",
            fix="A model is a list of blocks with linear layers in each, as in Llama, Qwen, Mistral, OPT or GPT-2.",
        )
    names = {id(module): name for name, module in model.named_modules()}
    return [(names[id(block)], block) for block in blocks]


class _Hidden:
    """Hidden states [windows, T, width] in a mapped file."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, folder: Path) -> None:
        size = shape[0] * shape[1] * shape[2]
        path = folder / "hidden"
        self.states = torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)
        self.device, self.windows = device, max(1, BATCH_TOKENS // shape[1])

    def read(self, start: int) -> Tensor:
        return self.states[start : start + self.windows].to(self.device, copy=True)

    def write(self, start: int, values: Tensor) -> None:
        self.states[start : start + len(values)].copy_(values)

    def finite(self) -> bool:
        return all(bool(torch.isfinite(part).all()) for part in self.states.split(self.windows))


class _Reached(Exception):
    """The first block was reached: the model need not be run any further."""


def _in_front(
    model: nn.Module, blocks: list[nn.Module], calibration: Tensor, folder: Path
) -> tuple[_Hidden, list[dict[str, Any]]]:
    """The hidden states in front of the first block, and what each block is passed besides (of one window)."""
    named: list[dict[str, Any]] = [{} for _ in blocks]
    found: list[Tensor] = []

    def record(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
            named[index] = _without_hidden(keywords)

        return hook

    def stop(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        found.append(arguments[0] if arguments else keywords["hidden_states"])
        raise _Reached

    device = next(model.parameters()).device
    with torch.no_grad(), evaluation_mode(model):
        hooks = [block.register_forward_pre_hook(record(i), with_kwargs=True) for i, block in enumerate(blocks)]
        try:
            model(input_ids=calibration[:1].to(device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        hidden: _Hidden | None = None
        hook = blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            for start, tokens in _pieces(calibration):
                try:
                    model(input_ids=tokens.to(device), use_cache=False)
                except _Reached:
                    states = found.pop()
                if hidden is None:
                    shape = (len(calibration), calibration.shape[1], states.shape[-1])
                    hidden = _Hidden(shape, states.dtype, device, folder)
                hidden.write(start, states)
        finally:
            hook.remove()
    assert hidden is not None
    return hidden, named


def _pieces(calibration: Tensor) -> Iterator[tuple[int, Tensor]]:
    windows = max(1, BATCH_TOKENS // calibration.shape[1])
    for start in range(0, len(calibration), windows):
        yield start, calibration[start : start + windows]


def _without_hidden(keywords: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in keywords.items() if name not in ("hidden_states", "past_key_values")}


def _as_many(value: Any, windows: int) -> Any:
    """What was recorded for one window, for so many: tensors with one window in front are repeated."""
    if isinstance(value, Tensor):
        return value.expand(windows, *value.shape[1:]) if value.ndim > 1 and value.shape[0] == 1 else value
    if isinstance(value, tuple):
        return tuple(_as_many(one, windows) for one in value)
    if isinstance(value, dict):
        return {name: _as_many(one, windows) for name, one in value.items()}
    return value
