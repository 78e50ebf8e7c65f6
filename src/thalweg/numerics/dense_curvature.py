"""The Hessian of a function of few numbers as a matrix: itself, and two that are positive semidefinite.

Each takes the function in the form that it needs and gives x [n] -> H [n, n], by autograd.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Scalar = Callable[[Tensor], Tensor]
Matrix = Callable[[Tensor], Tensor]


def exact(function: Scalar) -> Matrix:
    """The Hessian of x [n] -> scalar."""
    return torch.func.hessian(function)


def gauss_newton(outputs: Callable[[Tensor], Tensor], loss: Scalar) -> Matrix:
    """J^T C J for f(x) = loss(outputs(x)), with J the Jacobian of the outputs and C the loss's Hessian in them.

    Exact where the outputs are linear in x, as in softmax regression. For f = ||u(x)||^p / p it is
    ||u||^(p-2) J^T J + (p-2) ||u||^(p-4) (J^T u)(J^T u)^T, the source's choice for nonlinear equations.

    Args:
        outputs: x [n] to a tensor of any shape; few numbers, since C is their square.
        loss: such a tensor to a convex scalar.
    """

    def matrix(x: Tensor) -> Tensor:
        flat = outputs(x).detach()
        slopes = torch.func.jacrev(outputs)(x).reshape(flat.numel(), len(x))
        bend = torch.func.hessian(loss)(flat).reshape(flat.numel(), flat.numel())
        return slopes.T @ bend @ slopes

    return matrix


def fisher(terms: Callable[[Tensor], Tensor], weight: float = 1.0) -> Matrix:
    """weight sum_i grad f_i grad f_i^T, the empirical Fisher matrix.

    Args:
        terms: x [n] to the terms f_i [m], whose sum is f where they are minus log-likelihoods and weight is 1.
        weight: for other scales: 1 / m where f is the mean of its terms, and (p - 2) / ||u||^p for the one term
            ||u||^p / p (the source's "Fisher term").
    """

    def matrix(x: Tensor) -> Tensor:
        slopes = torch.func.jacrev(terms)(x).reshape(-1, len(x))
        return weight * slopes.T @ slopes

    return matrix
