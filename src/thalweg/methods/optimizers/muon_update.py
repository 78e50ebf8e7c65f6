"""Muon's step for the matrices of an optimizer: what `muon` and the methods built on it share. Equations in `muon`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg.methods.optimizers.base import Base, Group, sides_of
from thalweg.methods.optimizers.batches import batches, matrices_of, matrix_count
from thalweg.methods.optimizers.newton_schulz import BATCH_ELEMENTS, newton_schulz_list
from thalweg.methods.optimizers.sharding import gathered, scattered


def muon_update(optimizer: Base, group: Group, parameters: list[Tensor]) -> None:
    """One step with the group's lr, weight_decay, momentum, nesterov, ns_steps, scale, dtype; state momentum_buffer."""
    torch._foreach_mul_(optimizer.weights(parameters), 1.0 - group["lr"] * group["weight_decay"])
    # A batch from gradient to weight before the next one: what lies between is scratch memory, used again.
    for batch in batches(parameters, BATCH_ELEMENTS):
        _batch_update(optimizer, group, [parameters[index] for index in batch])


def _batch_update(optimizer: Base, group: Group, parameters: list[Tensor]) -> None:
    """The step of parameters whose matrices have one shape, but for the decay."""
    gradients, buffers = optimizer.grads(parameters), optimizer.buffers(parameters, "momentum_buffer")
    torch._foreach_lerp_(buffers, gradients, 1.0 - group["momentum"])
    updates = torch._foreach_lerp(gradients, buffers, group["momentum"]) if group["nesterov"] else buffers
    whole = [gathered(update, parameter) for update, parameter in zip(updates, parameters, strict=True)]
    pieces = [matrix for update in whole for matrix in matrices_of(update).unbind()]
    factors = iter(newton_schulz_list(pieces, group["ns_steps"], group["dtype"]))
    for parameter, update, weight in zip(parameters, whole, optimizer.weights(parameters), strict=True):
        own = [next(factors) for _ in range(matrix_count(parameter))]
        direction = (own[0] if len(own) == 1 else torch.stack(own)).reshape(update.shape)
        # Adding takes factors as narrow and as turned as they are: copies in the weight's layout would cost as much.
        weight.add_(scattered(direction, parameter), alpha=-group["lr"] * scale_of(parameter, group))


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
