"""Products of the Hessian with a vector, without the Hessian.

    H v = d/dt grad E(theta + t v) at t = 0

Twice backward gives it exactly and asks every operation for a second derivative, which fused attention kernels do not
have. The difference of two gradients, (grad E(theta + t v) - grad E(theta)) / t, asks for gradients only, so it works
with any loop that can compute one, sharded or compiled; its error is O(t), and rounding adds O(precision / t). Both
cost about one more gradient.

Tensors are lists in the order of `parameters`, each of its parameter's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


def gradient(loss: Callable[[], Tensor], parameters: Tensors) -> list[Tensor]:
    """The gradient of `loss()`, detached; zeros for parameters that it does not depend on."""
    with torch.enable_grad():
        return list(torch.autograd.grad(loss(), parameters, allow_unused=True, materialize_grads=True))


def hessian_vector_product(loss: Callable[[], Tensor], parameters: Tensors, vector: Tensors) -> list[Tensor]:
    """H v by differentiating twice.

    Args:
        loss: computes the scalar loss from the parameters as they are.
        parameters: what H is taken over. vector: v.
    """
    with torch.enable_grad():
        slopes = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True, materialize_grads=True)
        # A slope without a graph is constant: its part of H is zero.
        along = [(slope * part).sum() for slope, part in zip(slopes, vector, strict=True) if slope.requires_grad]
        if not along:
            return [torch.zeros_like(parameter) for parameter in parameters]
        total = torch.stack(along).sum()
        return list(torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True))


@torch.no_grad()
def finite_difference_product(
    gradients: Callable[[], Tensors],
    parameters: Tensors,
    vector: Tensors,
    here: Tensors | None = None,
    distance: float = 0.01,
) -> list[Tensor]:
    """H v as a difference of two gradients; the parameters are bit for bit what they were.

    Args:
        gradients: computes the gradient at the parameters as they are.
        parameters: moved in place by `distance * v / ||v||`, then put back.
        vector: v, not zero; `here`, the gradient at the parameters, may be the same tensors.
        here: computed if left out.
        distance: how far to look. Of the order of the parameters times the square root of the precision, or more.
    """
    here = [part.clone() for part in gradients()] if here is None else here
    step = distance / norm(vector)
    kept = [parameter.clone() for parameter in parameters]
    try:
        for parameter, part in zip(parameters, vector, strict=True):
            parameter.add_(part * step)
        there = gradients()
        return [(two - one) / step for one, two in zip(here, there, strict=True)]
    finally:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)


def norm(tensors: Tensors, order: float = 2.0) -> Tensor:
    """The norm of all entries of all tensors as one vector, a scalar; of sharded tensors the norm of the whole."""
    total = torch.nn.utils.get_total_norm(tensors, norm_type=order, foreach=True)
    return total.full_tensor() if hasattr(total, "full_tensor") else total
