"""A matrix kept from one step to the next in 32, 8 or 4 bits: what error feedback remembers.

    exact    a buffer like the parameter
    8bit     x = low + step q, q in 0..255, with low and step for every row
    4bit     the same with q in 0..15, two to a byte

Rounding is to the nearest, so the error of an entry is at most half a step of its row. Under FSDP2 rows are this
rank's own (the first dimension is the one that is sharded).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.methods.optimizers.base import Base, working_dtype
from thalweg.methods.optimizers.low_rank import zeros_beside
from thalweg.methods.optimizers.sharding import local

LEVELS = {"8bit": 255, "4bit": 15}


def recall(optimizer: Base, parameters: list[Tensor], form: str) -> list[Tensor]:
    """What was remembered, laid out like the parameters; zeros at first."""
    if form == "exact":
        return optimizer.buffers(parameters, "error")
    numbers, lows, steps = _states(optimizer, parameters, form)
    result = []
    for parameter, number, low, step in zip(parameters, numbers, lows, steps, strict=True):
        result.append(_unpacked(number, form, parameter.shape[-1]).to(step.dtype) * step + low)
    return result


def remember(optimizer: Base, parameters: list[Tensor], values: list[Tensor], form: str) -> None:
    """Keep values that are laid out like the parameters."""
    if form == "exact":
        torch._foreach_copy_(optimizer.buffers(parameters, "error"), values)
        return
    for value, number, low, step in zip(values, *_states(optimizer, parameters, form), strict=True):
        low.copy_(value.amin(dim=-1, keepdim=True))
        step.copy_((value.amax(dim=-1, keepdim=True) - low) / LEVELS[form])
        # A row of equal values has no step; any number then says the same.
        quotient = (value - low) / step.clamp_min(torch.finfo(step.dtype).tiny)
        number.copy_(_packed(quotient.round().clamp(0, LEVELS[form]).to(torch.uint8), form))


def _states(optimizer: Base, parameters: list[Tensor], form: str) -> list[list[Tensor]]:
    """This rank's shards of the numbers, of the least value of every row and of the step of every row."""
    for parameter in parameters:
        state, lead, dtype = optimizer.state[parameter], parameter.shape[:-1], working_dtype(parameter)
        if "error" not in state:
            width = parameter.shape[-1] if form == "8bit" else (parameter.shape[-1] + 1) // 2
            state["error"] = zeros_beside(parameter, (*lead, width), torch.uint8)
            state["error_low"] = zeros_beside(parameter, (*lead, 1), dtype)
            state["error_step"] = zeros_beside(parameter, (*lead, 1), dtype)
    names = ("error", "error_low", "error_step")
    return [[local(optimizer.state[parameter][name]) for parameter in parameters] for name in names]


def _packed(numbers: Tensor, form: str) -> Tensor:
    if form == "8bit":
        return numbers
    even = F.pad(numbers, (0, numbers.shape[-1] % 2))
    return even[..., ::2] | (even[..., 1::2] << 4)


def _unpacked(packed: Tensor, form: str, width: int) -> Tensor:
    if form == "8bit":
        return packed
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., :width]
