"""Continuous flows that gradient descent follows more closely than the negative gradient flow.

A step theta - h g of gradient descent is not where the flow -g is after time h; they part by (h^2 / 2) ||H g|| +
O(h^3). Flows whose field has terms in h stay closer. With g and H the gradient and the Hessian of E at theta:

    negative gradient   -g                                                               error O(h^2)
    implicit            -(g + (h / 2) H g)                                               error O(h^3)
    third order         -(g + (h / 2) H g + h^2 (H H g / 3 + d/dtheta[g^T H g] / 12))    error O(h^4)
    principal           sum_i log(1 - h lambda_i) / (h lambda_i) (g . u_i) u_i           exact where H is constant

with (lambda_i, u_i) the eigenpairs of H, and g held fixed in the bracket. The principal flow tells what happens along
each: h lambda < 1 descends; between 1 and 2 the logarithm is complex, its real part still falls and the imaginary
part oscillates; above 2 it grows.

Source: "On a continuous time model of gradient descent dynamics and instability in deep learning" (2023,
arXiv:2302.01952). Functions of flat vectors, for small problems and for oracles. The coefficient is singular at
h lambda = 1, where one step lands on the minimum; the authors' code puts -100 there and so do we.
"""

from __future__ import annotations

import cmath
from collections.abc import Callable

import torch
from torch import Tensor

from thalweg.numerics.curvature import gradient, hessian_vector_product

Energy = Callable[[Tensor], Tensor]
AT_THE_SINGULARITY = -100.0


def negative_gradient_field(energy: Energy, theta: Tensor) -> Tensor:
    """-g at theta [n]."""
    return -_at(energy, theta)[1]


def implicit_field(energy: Energy, theta: Tensor, h: float) -> Tensor:
    """-(g + (h / 2) H g) at theta [n]: descent on E + (h / 4) ||g||^2, implicit gradient regularisation."""
    point, slope = _at(energy, theta)
    return -(slope + 0.5 * h * _product(energy, point, slope))


def third_order_field(energy: Energy, theta: Tensor, h: float) -> Tensor:
    """The field of the third-order flow at theta [n]."""
    point, slope = _at(energy, theta)
    once = _product(energy, point, slope)
    twice = _product(energy, point, once)

    def bent(at: Tensor) -> Tensor:
        """g^T H(at) g with g held: the derivative along g, twice."""
        first = torch.autograd.grad(energy(at), at, create_graph=True)[0] @ slope
        if not first.requires_grad:
            return at.sum() * 0.0
        second = torch.autograd.grad(first, at, create_graph=True, materialize_grads=True)[0] @ slope
        return second if second.requires_grad else at.sum() * 0.0

    third = gradient(lambda: bent(point), [point])[0]
    return -(slope + 0.5 * h * once + h**2 * (twice / 3.0 + third / 12.0))


def principal_coefficient(h_lambda: float) -> complex:
    """log(1 - h lambda) / (h lambda) for h lambda = `h_lambda`; -1 at 0."""
    if h_lambda == 0.0:
        return complex(-1.0)
    if h_lambda == 1.0:
        return complex(AT_THE_SINGULARITY)
    return cmath.log(1.0 - h_lambda) / h_lambda


def principal_field(energy: Energy, theta: Tensor, h: float) -> Tensor:
    """The principal flow's field at theta [n], complex; the whole Hessian is computed."""
    _, slope = _at(energy, theta)
    values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(energy, theta.detach()))
    complex_type = torch.complex128 if theta.dtype == torch.float64 else torch.complex64
    weights = torch.tensor([principal_coefficient(h * value) for value in values.tolist()], dtype=complex_type)
    return vectors.to(complex_type) @ (weights * (vectors.mT @ slope))


def _at(energy: Energy, theta: Tensor) -> tuple[Tensor, Tensor]:
    """theta as a leaf, and the gradient there."""
    point = theta.detach().clone().requires_grad_()
    return point, gradient(lambda: energy(point), [point])[0]


def _product(energy: Energy, point: Tensor, vector: Tensor) -> Tensor:
    return hessian_vector_product(lambda: energy(point), [point], [vector])[0]
