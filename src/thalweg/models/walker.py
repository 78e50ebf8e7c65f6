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
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import ModelError
from thalweg.models.block_inputs import Hidden, as_many, in_front
from thalweg.models.blocks import decoder_blocks
from thalweg.models.head import evaluation_mode
from thalweg.models.input_statistics import OUTPUTS_SEEN, Observer, OutputError
from thalweg.models.linears import Linear, linears_of


class _Passed(Exception):
    """What was looked for has been called: the block need not be run any further."""


class Block:
    """One decoder block, and the calibration inputs in front of it.

    Attributes:
        index: from 0 on.
        count: how many blocks the model has.
        name: of its module in the model, such as "model.layers.3".
        module: the block.
        linears: its linear layers by name, within the block.
        errors: once the walk has gone on, of each linear whose weights have changed: the squared error of its outputs
            on calibration inputs that now reach it, over their squared length. Of some tokens of each batch
            (`OutputError`); in the last block, whose outputs no other is waiting for, of all tokens of the first batch.
    """

    def __init__(
        self, index: int, count: int, name: str, module: nn.Module, hidden: Hidden | None, named: dict
    ) -> None:
        self.index, self.count, self.name, self.module = index, count, name, module
        self.linears: dict[str, Linear] = linears_of(module)
        self.errors: dict[str, float] = {}
        self._inputs, self._named = hidden, named
        self._before = {name: linear.weight.clone() for name, linear in self.linears.items()}

    @property
    def _hidden(self) -> Hidden:
        assert self._inputs is not None, "this walk has no calibration inputs"
        return self._inputs

    # -- what methods ask for -------------------------------------------------------------------------------------

    def before(self, name: str) -> Tensor:
        """The weight [out, in] of a linear as it was when the walk came to this block."""
        return self._before[name]

    def rewritten(self, name: str) -> None:
        """A linear and what makes its inputs were rewritten together: `errors` are from here on against what it is now.

        For scales that are folded, which change weights and inputs and leave the product as it was.
        """
        self._before[name] = self.linears[name].weight.clone()

    def batches(self) -> Iterator[Tensor]:
        """The hidden states in front of the block, [windows, T, width] at a time; a copy that may be changed."""
        for start in range(0, len(self._hidden.states), self._hidden.windows):
            yield self._hidden.read(start)

    def inputs(self, rows: Tensor) -> Tensor:
        """The hidden states in front of the block of these windows (int64 [n]): [n, T, width], a copy."""
        return self._hidden.states[rows.cpu()].to(self._hidden.device)

    def run(self, hidden: Tensor, module: nn.Module | None = None) -> Tensor:
        """The block's outputs [windows, T, width] for hidden states of that shape, with gradient where enabled.

        Another `module` runs in the block's place, such as the same block of the dense model.
        """
        found = (module or self.module)(hidden, **as_many(self._named, len(hidden)))
        return found[0] if isinstance(found, tuple) else found

    def runs_of(self, inner: str) -> Iterator[Callable[[], Tensor]]:
        """For each batch, a function that runs a module of the block, and no more than it, on what it is given there.

        Args:
            inner: its name within the block, such as "self_attn"; "" is the block. Of a module that the block does not
                call once (a list, or one whose parts are called past it), the next one around it is run.

        The inputs are those that the block's weights make as they are now, in evaluation mode; weights within the
        module may change from call to call. It gives the module's first output, with gradient where enabled. Batches
        that do not reach the module are left out.
        """
        while inner and self._calls(inner) != 1:
            inner = inner.rpartition(".")[0]
        module = self.module.get_submodule(inner)
        given: list[tuple[tuple, dict[str, Any]]] = []

        def stop(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
            given.append((arguments, keywords))
            raise _Passed

        for hidden in self.batches():
            # In front of the module's own hooks, which change its inputs when it runs.
            hook = module.register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
            try:
                with torch.no_grad(), evaluation_mode(self.module), suppress(_Passed):
                    self.run(hidden)
            finally:
                hook.remove()
            if given:
                yield partial(_first_output, module, *given.pop())

    def _calls(self, inner: str) -> int:
        """How often the block calls a module, for one window."""
        counted: list[None] = []
        hook = self.module.get_submodule(inner).register_forward_pre_hook(lambda *_: counted.append(None))
        try:
            with torch.no_grad(), evaluation_mode(self.module):
                self.run(self._hidden.read(0)[:1])
        finally:
            hook.remove()
        return len(counted)

    def observe(self, observers: Mapping[str, Observer]) -> None:
        """Put the calibration through the block once, and hand each linear's inputs [tokens, in] to its observer.

        Where the first batch has called each of them once, later ones go no further than the last of them.
        """
        calls: list[str] = []
        last: str | None = None

        def told(name: str) -> None:
            calls.append(name)
            if name == last:
                raise _Passed

        with torch.no_grad(), evaluation_mode(self.module), self._seen_by(observers, told):
            for number, hidden in enumerate(self.batches()):
                with suppress(_Passed):
                    self.run(hidden)
                if number == 0 and calls and sorted(calls) == sorted(observers):
                    last = calls[-1]

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
        last = self.index + 1 == self.count
        observers = {
            name: OutputError(before, self.linears[name].weight, at_most=None if last else OUTPUTS_SEEN)
            for name, before in self._before.items()
            if not torch.equal(before, self.linears[name].weight)
        }
        needed = 1 if last else len(self._hidden.states)
        with torch.no_grad(), evaluation_mode(self.module), self._seen_by(observers):
            for start in range(0, needed, self._hidden.windows):
                self._hidden.write(start, self.run(self._hidden.read(start)))
        self.errors = {name: one.lost / one.whole if one.whole else 0.0 for name, one in observers.items()}
        self._before = {}

    @contextmanager
    def _seen_by(self, observers: Mapping[str, Observer], told: Callable[[str], None] | None = None) -> Iterator[None]:
        def hook_of(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: tuple) -> None:
                observers[name].see(arguments[0].detach().reshape(-1, arguments[0].shape[-1]).float())
                if told is not None:
                    told(name)

            return hook

        hooks = [self.linears[name].module.register_forward_pre_hook(hook_of(name)) for name in observers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _first_output(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> Tensor:
    """Of a call with copies, since a module may change what it is given."""
    copied = [value.clone() if isinstance(value, Tensor) else value for value in arguments]
    named = {name: value.clone() if isinstance(value, Tensor) else value for name, value in keywords.items()}
    found = module(*copied, **named)
    return found[0] if isinstance(found, tuple) else found


def walk(model: nn.Module, calibration: Tensor | None, start: int = 0) -> Iterator[Block]:
    """The blocks of a model one after the other, each with the calibration inputs that the blocks before it give.

    Args:
        model: any transformers causal language model.
        calibration: int64 [windows, T], whole windows without padding; None gives blocks without inputs.
        start: blocks before this one are gone through but not given out: they were changed before.

    Raises:
        ModelError: the model has no decoder blocks that can be found, or its weights or hidden states are not finite
            (behind the last block those of the first batch).
    """
    blocks = named_blocks(model)
    if calibration is None:
        for index, (name, module) in enumerate(blocks[start:], start):
            yield _checked(Block(index, len(blocks), name, module, None, {}))
        return
    with tempfile.TemporaryDirectory(prefix="thalweg-") as folder:
        hidden, named = in_front(model, [block for _, block in blocks], calibration, Path(folder))
        hidden.check("the embeddings")
        for index, (name, module) in enumerate(blocks):
            block = Block(index, len(blocks), name, module, hidden, named[index])
            if index >= start:
                yield _checked(block)
            block.advance()
            hidden.check(name)


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


def _checked(block: Block) -> Block:
    """A block that may be given out: no method need look for NaN in its weights."""
    for linear in block.linears.values():
        linear.check_finite(block.name)
    return block
