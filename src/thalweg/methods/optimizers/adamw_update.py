"""One step of AdamW for part of an optimizer's parameters: what embeddings, heads and vectors get beside a method for
matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from thalweg.methods.optimizers.base import Base, Group


def adamw_update(optimizer: Base, group: Group, parameters: list[Tensor], weights: list[Tensor] | None = None) -> None:
    """AdamW's step (see `adamw`) with the group's lr, weight_decay, betas and eps; state step, exp_avg, exp_avg_sq.

    Args:
        weights: what is moved; the parameters' own weights when left out.
    """
    first, second, steps = adamw_state(optimizer, group, parameters)
    adamw(
        optimizer.weights(parameters) if weights is None else weights,
        optimizer.grads(parameters),
        first,
        second,
        [],
        steps,
        fused=group["fused"],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def adamw_state(
    optimizer: Base, group: Group, parameters: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Both moments and the step counters of parameters, made where there are none yet."""
    for parameter in parameters:
        if "step" not in optimizer.state[parameter]:
            device = parameter.device if group["fused"] else "cpu"
            optimizer.state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=device)
    steps = [optimizer.state[parameter]["step"] for parameter in parameters]
    return optimizer.buffers(parameters, "exp_avg"), optimizer.buffers(parameters, "exp_avg_sq"), steps
