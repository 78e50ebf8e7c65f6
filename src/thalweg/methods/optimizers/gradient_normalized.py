"""Gradient-normalised smoothness: Newton's method with an approximate Hessian and a step that finds its own length.

    lambda = ||g||_* / gamma                              g = grad f(x)
    d      = -(H + lambda B)^{-1} g                       H >= 0, as near to the Hessian as one likes
    take d and double gamma   if   f(x) - f(x + d) >= ||grad f(x + d)||_*^2 / (8 lambda),   else halve gamma, try again

with the norms ||h||^2 = h^T B h and ||g||_*^2 = g^T B^{-1} g. ||d|| <= gamma: it is the radius in which H makes a good
linear model of the gradient, measured against ||g||, and it takes up what Taylor leaves out and what H gets wrong
alike. Nobody needs to know a constant; gamma goes on from iteration to iteration.

H may be (functions of `numerics.dense_curvature`)

    exact          the Hessian, for convex f
    gauss_newton   J^T (Hessian of the loss in the outputs) J       J = d outputs / d x
    fisher         sum_i grad f_i grad f_i^T                        f = sum_i f_i
    None           0: the normalised gradient, with the same search

What it is: a minimiser for small deterministic problems, such as logistic regression, a probe on frozen features or
the fit of a law: H is dense, n^2 numbers, and every trial solves with it, n^3 / 3 multiplications; some thousand
parameters are its limit. It is no torch optimizer for language models and takes no place in a recipe: its test needs
the same function at two points, so a batch that changes, or noise of any kind, breaks it, and it waits for the result.

Source: "Gradient-Normalized Smoothness for Optimization with Approximate Hessians" (Semenov, Jaggi, Doikov, 2025,
arXiv:2506.13710). Against the authors' program the iterates agree to rounding. Where we deviate: after the last
allowed trial we stay where we are (theirs moves to the rejected point), and an H that is not positive semidefinite
makes gamma smaller until H + lambda B is positive definite (theirs stops searching).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg import catalog
from thalweg.errors import RecipeError
from thalweg.numerics.dense_curvature import Matrix, Scalar

# Keeps lambda finite, and gamma above zero however often it is halved.
FLOOR, SMALLEST = 1e-8, 1e-9
TRIALS = 40


@dataclass(frozen=True)
class Minimum:
    """Where the search ended, and how it went.

    Args:
        x: the last point, [n].
        value: f there.
        gradient_norm: the dual norm of the gradient there.
        iterations: steps that were taken.
        solves: linear systems that were solved, a trial each.
        converged: whether the gradient got below the tolerance.
        values: f at the start and after each step.
        gammas: the radius before each step and after the last.
    """

    x: Tensor
    value: float
    gradient_norm: float
    iterations: int
    solves: int
    converged: bool
    values: tuple[float, ...]
    gammas: tuple[float, ...]


def regularized_newton(
    function: Scalar,
    start: Tensor,
    hessian: Matrix | None = None,
    metric: Tensor | None = None,
    *,
    gamma: float = 1.0,
    steps: int = 1000,
    tolerance: float = 1e-8,
) -> Minimum:
    """Minimise a deterministic function of a vector.

    Args:
        function: x [n] to a scalar, by operations that autograd knows.
        start: [n]; float64 unless a coarse answer will do. Not changed.
        hessian: x [n] to H [n, n], symmetric and positive semidefinite: what the functions of
            `numerics.dense_curvature` give, or one's own.
        metric: B [n, n], positive definite; the identity if left out.
        gamma: the first radius; any will do.
        steps: most steps.
        tolerance: ends where the gradient's norm is at most this.

    Raises:
        RecipeError: an option out of range, a start that is no vector, a function that is not finite there, or a
            metric that is not positive definite.
    """
    where = "gradient_normalized"
    catalog.lookup(where).check({"gamma": gamma, "steps": steps, "tolerance": tolerance}, where=where)
    if start.ndim != 1 or not start.is_floating_point():
        raise RecipeError(
            f"the start has shape {tuple(start.shape)} and type {start.dtype}",
            where=where,
            fix="Give a vector of floating-point numbers, such as parameters_to_vector(...).",
        )
    identity = torch.eye(len(start), dtype=start.dtype, device=start.device)
    metric = identity if metric is None else metric.to(identity)
    factor, failed = torch.linalg.cholesky_ex(metric)
    if int(failed):
        raise RecipeError("the metric is not positive definite", where=where)
    x = start.detach().clone()
    value, slope, size = _look(function, x, factor)
    if not math.isfinite(value):
        raise RecipeError(f"the function is {value} at the start", where=where)
    values, gammas, solves = [value], [gamma], 0
    while size > tolerance and len(values) <= steps:
        curvature = torch.zeros_like(metric) if hessian is None else hessian(x).detach().to(metric)
        for _ in range(TRIALS):
            strength = size / (gamma + FLOOR)
            move = _solve(curvature + strength * metric, slope)
            solves += 1
            found = None if move is None else _look(function, x + move, factor)
            if found is not None and move is not None and value - found[0] >= found[2] ** 2 / (8.0 * strength):
                break
            gamma *= 0.5
        else:
            break
        x = x + move
        value, slope, size = found
        gamma = max(2.0 * gamma, SMALLEST)
        values.append(value)
        gammas.append(gamma)
    return Minimum(x, value, size, len(values) - 1, solves, size <= tolerance, tuple(values), tuple(gammas))


def _look(function: Scalar, x: Tensor, factor: Tensor) -> tuple[float, Tensor, float]:
    """The value, the gradient, and its dual norm by the metric's Cholesky factor."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x)
        (slope,) = torch.autograd.grad(value, x)
    size = torch.linalg.solve_triangular(factor, slope[:, None], upper=False).norm()
    return float(value.detach()), slope, float(size)


def _solve(matrix: Tensor, slope: Tensor) -> Tensor | None:
    """-matrix^{-1} slope, or None where the matrix is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return None if int(failed) else -torch.cholesky_solve(slope[:, None], factor)[:, 0]
