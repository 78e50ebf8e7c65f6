"""What stands in front of a model's blocks: hidden states of calibration windows, and what is passed beside them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import ModelError, disk_is_full
from thalweg.models.head import evaluation_mode

BATCH_TOKENS = 1024


class Hidden:
    """Hidden states [windows, T, width] in a mapped file.

    Raises:
        ModelError: the disk has no room for them.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, folder: Path) -> None:
        size = shape[0] * shape[1] * shape[2]
        path = folder / "hidden"
        _reserve(path, size * dtype.itemsize)
        self.states = torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)
        self.device, self.windows = device, max(1, BATCH_TOKENS // shape[1])

    def read(self, start: int) -> Tensor:
        return self.states[start : start + self.windows].to(self.device, copy=True)

    def write(self, start: int, values: Tensor) -> None:
        self.states[start : start + len(values)].copy_(values)

    def check(self, name: str) -> None:
        """Raises ModelError where they, the outputs of a module of this name, are not finite."""
        if not all(bool(torch.isfinite(part).all()) for part in self.states.split(self.windows)):
            raise ModelError(
                f"The outputs of {name} are not finite.",
                where="block walker",
                fix="The model's weights hold NaN or overflow; check the model before compressing it.",
            )


def _reserve(path: Path, size: int) -> None:
    """Make a file of so many bytes that are there: a mapped file with holes kills the process when the disk is full."""
    if not hasattr(os, "posix_fallocate"):  # as on macOS
        return
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise ModelError(
            f"the disk has no room for {size / 1e6:,.0f} MB of hidden states",
            where=str(path.parent),
            fix="Free some space, give $TMPDIR a folder on another disk, or calibrate on fewer windows.",
        ) from None


class _Reached(Exception):
    """The first block was reached: the model need not be run any further."""


def in_front(
    model: nn.Module, blocks: list[nn.Module], calibration: Tensor, folder: Path
) -> tuple[Hidden, list[dict[str, Any]]]:
    """The hidden states in front of the first block, and what each block is passed besides (of one window)."""
    found: list[Tensor] = []

    def stop(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        found.append(arguments[0] if arguments else keywords["hidden_states"])
        raise _Reached

    device = next(model.parameters()).device
    with torch.no_grad(), evaluation_mode(model):
        named, of_two = (_besides(model, blocks, calibration[:windows].to(device)) for windows in (1, 2))
        if len(calibration) > 1 and not all(map(_for_any_window, named, of_two)):
            raise ModelError(
                f"{type(model).__name__} passes its blocks something of its own for every window.",
                where="block walker",
                fix="Models can be compressed whose blocks get hidden states, masks and positions.",
            )
        hidden: Hidden | None = None
        hook = blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            for start, tokens in _pieces(calibration):
                try:
                    model(input_ids=tokens.to(device), use_cache=False)
                except _Reached:
                    states = found.pop()
                if hidden is None:
                    shape = (len(calibration), calibration.shape[1], states.shape[-1])
                    hidden = Hidden(shape, states.dtype, device, folder)
                hidden.write(start, states)
        finally:
            hook.remove()
    assert hidden is not None
    return hidden, named


def _besides(model: nn.Module, blocks: list[nn.Module], tokens: Tensor) -> list[dict[str, Any]]:
    """What each block is passed beside the hidden states."""
    named: list[dict[str, Any]] = [{} for _ in blocks]

    def record(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
            named[index] = _beside_hidden(module, arguments, keywords)

        return hook

    hooks = [block.register_forward_pre_hook(record(i), with_kwargs=True) for i, block in enumerate(blocks)]
    try:
        model(input_ids=tokens, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return named


def _pieces(calibration: Tensor) -> Iterator[tuple[int, Tensor]]:
    windows = max(1, BATCH_TOKENS // calibration.shape[1])
    for start in range(0, len(calibration), windows):
        yield start, calibration[start : start + windows]


def _beside_hidden(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> dict[str, Any]:
    """By name what a block was passed beside the hidden states; GPT-2 passes its mask by place."""
    hidden, *names = inspect.signature(module.forward).parameters
    passed = {**dict(zip(names, arguments[1:], strict=False)), **keywords}
    return {name: value for name, value in passed.items() if name not in (hidden, "past_key_values")}


def as_many(value: Any, windows: int) -> Any:
    """What was recorded for one window, for so many: tensors with one window in front are repeated."""
    if isinstance(value, Tensor):
        return value.expand(windows, *value.shape[1:]) if value.ndim > 1 and value.shape[0] == 1 else value
    if isinstance(value, tuple):
        return tuple(as_many(one, windows) for one in value)
    if isinstance(value, dict):
        return {name: as_many(one, windows) for name, one in value.items()}
    return value


def _for_any_window(one: Any, two: Any) -> bool:
    """Whether what was passed for one window serves others: it was passed for both of two."""
    if isinstance(one, Tensor):
        if not isinstance(two, Tensor) or one.shape[1:] != two.shape[1:]:
            return False
        return torch.equal(one, two) if one.shape == two.shape else torch.equal(as_many(one, len(two)), two)
    if isinstance(one, tuple):
        return isinstance(two, tuple) and len(one) == len(two) and all(map(_for_any_window, one, two))
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(_for_any_window(one[k], two[k]) for k in one)
    return True
