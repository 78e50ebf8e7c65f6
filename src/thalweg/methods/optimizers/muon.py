"""Muon: momentum for hidden matrices, with every direction of the update given the same length.

    B = beta B + (1 - beta) G                   G [m, n] the gradient of a hidden weight
    U = (1 - beta) G + beta B                   (Nesterov; without it U = B)
    O = NewtonSchulz(U)                         about U's polar factor, see `newton_schulz`
    W = W (1 - lr wd) - lr scale O

Embeddings, heads and vectors get AdamW inside the same optimizer: this works on `parameter_groups(model)` as is.

The scale says what a learning rate means; numbers are comparable within one scale only:

    kimi      0.2 sqrt(max(m, n))     update of RMS about 0.2, as AdamW's: one learning rate and decay serve both
    kj        sqrt(max(1, m / n))     the first implementation; learning rates near 0.02
    spectral  sqrt(m / n)             steepest descent under the RMS-to-RMS norm
    none      1

Sources: "Muon: An optimizer for hidden layers in neural networks" (Jordan and others, 2024, blog post); kimi:
"Muon is Scalable for LLM Training" (2025, arXiv:2502.16982). Where we deviate: kimi's scale is the default, and
AdamW's eps is 1e-8 like that of our AdamW (theirs 1e-10), so that the two arms differ in the matrices alone.
A fused query-key-value weight is treated as one matrix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.methods.optimizers.adamw_update import adamw_update
from thalweg.methods.optimizers.base import Base, Group
from thalweg.methods.optimizers.newton_schulz import newton_schulz_list
from thalweg.methods.optimizers.sharding import gathered, scattered


class Muon(Base):
    """Muon for groups of kind "matrix", AdamW for the others.

    Given plain parameters, or groups without "kind", those with two and more dimensions count as matrices and the
    others as vectors. Embeddings and output heads have two dimensions too but do not want Muon: pass them in a group
    with kind="embedding" or "head", or take the groups from `parameter_groups(model)`.

    Three dimensions are a stack of matrices (experts), four and more a filter [out, rest].

    Args:
        params: parameters or groups.
        lr: learning rate for both parts.
        weight_decay: decoupled, multiplied by the learning rate.
        momentum: memory of the gradient, beta above.
        nesterov: look ahead by one step of momentum.
        ns_steps: Newton-Schulz iterations.
        scale: kimi, kj, spectral or none, see above.
        dtype: number format of the iteration: auto, bfloat16 or float32.
        beta1: AdamW part, memory of the first moment.
        beta2: AdamW part, memory of the second moment.
        eps: AdamW part, added to the root of the second moment.

    Raises:
        RecipeError: an option out of range, or a matrix group with a vector in it.
    """

    card = "muon"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        scale: str = "kimi",
        dtype: str = "auto",
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            scale=scale,
            dtype=dtype,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
        )

    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """Muon for the hidden matrices, AdamW for the others."""
        matrices, others = self.split(group, parameters)
        if matrices:
            self._matrix_step(group, matrices)
        adamw_update(self, group, others)

    def _matrix_step(self, group: Group, parameters: list[Tensor]) -> None:
        weights, gradients = self.weights(parameters), self.grads(parameters)
        buffers = self.buffers(parameters, "momentum_buffer")
        torch._foreach_lerp_(buffers, gradients, 1.0 - group["momentum"])
        if group["nesterov"]:
            updates = list(torch._foreach_lerp(gradients, buffers, group["momentum"]))
        else:
            updates = buffers
        directions = self._directions(group, parameters, updates)
        sizes = [_scale(parameter.shape, group) for parameter in parameters]
        torch._foreach_mul_(directions, sizes)
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, directions, alpha=-group["lr"])

    def _directions(self, group: Group, parameters: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
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


def _scale(shape: torch.Size, group: Group) -> float:
    """The factor on the polar factor of one parameter."""
    rows, columns = (shape[1], shape[2]) if len(shape) == 3 else (shape[0], math.prod(shape[1:]))
    if group["transposed"]:
        rows, columns = columns, rows
    if group["scale"] == "kimi":
        return 0.2 * math.sqrt(max(rows, columns))
    if group["scale"] == "kj":
        return math.sqrt(max(1.0, rows / columns))
    return math.sqrt(rows / columns) if group["scale"] == "spectral" else 1.0
