"""Muon's step for the matrices of an optimizer: what `muon` and the methods built on it share. Equations in `muon`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg.methods.optimizers.base import Base, Group, sides_of
from thalweg.methods.optimizers.newton_schulz import newton_schulz_list
from thalweg.methods.optimizers.sharding import gathered, scattered


def muon_update(optimizer: Base, group: Group, parameters: list[Tensor]) -> None:
    """One step with the group's lr, weight_decay, momentum, nesterov, ns_steps, scale, dtype; state momentum_buffer."""
    weights, gradients = optimizer.weights(parameters), optimizer.grads(parameters)
    buffers = optimizer.buffers(parameters, "momentum_buffer")
    torch._foreach_lerp_(buffers, gradients, 1.0 - group["momentum"])
    if group["nesterov"]:
        updates = list(torch._foreach_lerp(gradients, buffers, group["momentum"]))
    else:
        updates = buffers
    directions = _directions(group, parameters, updates)
    sizes = [scale_of(parameter, group) for parameter in parameters]
    torch._foreach_mul_(directions, sizes)
    torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(weights, directions, alpha=-group["lr"])


def _directions(group: Group, parameters: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """The polar factors of the updates, in the layout of the parameters."""
    whole = [gathered(update, parameter) for update, parameter in zip(updates, parameters, strict=True)]
    stacks = [_as_matrices(update) for update in whole]
    pieces = [matrix for stack in stacks for matrix in stack.unbind()]
    factors = iter(newton_schulz_list(pieces, group["ns_steps"], group["dtype"]))
    directions = []
    for parameter, update, stack in zip(parameters, whole, stacks, strict=True):
        own = [next(factors) for _ in range(len(stack))]
        direction = own[0] if len(own) == 1 else torch.stack(own)
        directions.append(scattered(direction.reshape(update.shape), parameter))
    return directions


def _as_matrices(update: Tensor) -> Tensor:
    """A view [stack, m, n]: three dimensions are a stack already, more are one filter [out, rest]."""
    if update.ndim == 3:
        return update
    return update.flatten(1).unsqueeze(0)


def scale_of(parameter: Tensor, group: Group) -> float:
    """The factor on the polar factor of one parameter; see `muon`."""
    rows, columns = sides_of(parameter)
    if group["transposed"]:
        rows, columns = columns, rows
    if group["scale"] == "kimi":
        return 0.2 * math.sqrt(max(rows, columns))
    if group["scale"] == "kj":
        return math.sqrt(max(1.0, rows / columns))
    return math.sqrt(rows / columns) if group["scale"] == "spectral" else 1.0
