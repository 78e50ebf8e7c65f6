"""Products of the Hessian with a vector, without the Hessian, and the top of its spectrum from them.

    H v = d/dt grad E(theta + t v) at t = 0

Twice backward gives it exactly and asks every operation for a second derivative, which fused attention kernels do not
have. The difference of two gradients, (grad E(theta + t v) - grad E(theta)) / t, asks for gradients only, so it works
with any loop that can compute one, sharded or compiled; its error is O(t), and rounding adds O(precision / t). Both
cost about one more gradient.

Tensors are lists in the order of `parameters`, each of its parameter's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Spectrum:
    """The top of a spectrum as Lanczos found it.

    Args:
        values: eigenvalues, the largest first.
        errors: how far at most each is from an eigenvalue (the norm of A v - value v).
        vectors: of each value a unit vector, in the shape of the parameters.
        products: how many times the matrix was multiplied with a vector.
    """

    values: list[float]
    errors: list[float]
    vectors: list[list[Tensor]]
    products: int


@torch.no_grad()
def lanczos(
    product: Callable[[list[Tensor]], Tensors],
    start: Tensors,
    count: int = 1,
    *,
    steps: int = 60,
    tolerance: float = 1e-3,
) -> Spectrum:
    """The largest eigenvalues of a symmetric matrix that is known by its products with vectors.

        A q_k = b_(k-1) q_(k-1) + a_k q_k + b_k q_(k+1)

    The q are orthonormal, and the eigenvalues of the tridiagonal matrix of a and b approach those of A from inside, the
    extreme ones first. Unlike power iteration this finds the largest value also where a negative one is larger in size.
    Every vector is made orthogonal to all before it, twice: without that an eigenvalue that has been found is found
    again and again. So memory is a vector a step. A value that occurs several times is found once.

    Source: "An iteration method for the solution of the eigenvalue problem of linear differential and integral
    operators" (Lanczos, 1950).

    Args:
        product: A v.
        start: where the search begins, not zero: random, or a vector of an earlier `Spectrum` that is nearly right.
        count: how many values.
        steps: products at most.
        tolerance: stop as soon as the error of each of the values, over the largest value in size, is below this.
    """
    basis = [_scaled(list(start), 1.0 / float(norm(start)))]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        image = list(product(basis[-1]))
        diagonal.append(float(_dot(image, basis[-1])))
        for _ in range(2):
            for vector in basis:
                torch._foreach_sub_(image, _scaled(vector, float(_dot(image, vector))))
        left = float(norm(image))
        values, mixtures = _eigen(diagonal, beside)
        errors = [abs(left * float(mixtures[-1, place])) for place in range(len(values))][:count]
        size = max(abs(values[0]), abs(values[-1]))
        # What is left below rounding means that the vectors so far span all that A makes of the first.
        whole = left <= 1e-6 * size or len(basis) == sum(part.numel() for part in start)
        if whole or len(basis) == steps or (len(values) >= count and max(errors) <= tolerance * size):
            break
        beside.append(left)
        basis.append(_scaled(image, 1.0 / left))
    places = range(min(count, len(values)))
    vectors = [_mixed(basis, mixtures[:, place].tolist()) for place in places]
    return Spectrum([float(values[place]) for place in places], errors, vectors, len(basis))


def _eigen(diagonal: list[float], beside: list[float]) -> tuple[list[float], Tensor]:
    """Eigenvalues of a tridiagonal matrix, largest first, and the unit vectors as columns; in double precision."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0).tolist(), vectors.flip(1)


def _dot(one: Tensors, two: Tensors) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, two, strict=True)]).sum()


def _scaled(tensors: list[Tensor], factor: float) -> list[Tensor]:
    return list(torch._foreach_mul(tensors, factor))


def _mixed(basis: list[list[Tensor]], weights: list[float]) -> list[Tensor]:
    total = _scaled(basis[0], weights[0])
    for vector, weight in zip(basis[1:], weights[1:], strict=True):
        torch._foreach_add_(total, vector, alpha=weight)
    return total
