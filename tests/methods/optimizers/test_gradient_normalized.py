"""Gradient-normalised smoothness: worked iterates, a plain float64 twin, the curvatures, and mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thalweg.arms import parse_arm
from thalweg.errors import RecipeError
from thalweg.methods.optimizers import regularized_newton
from thalweg.numerics.dense_curvature import exact, fisher, gauss_newton

SCALES = torch.tensor([1.0, 10.0], dtype=torch.float64)
START = torch.tensor([3.0, 0.4], dtype=torch.float64)


def quadratic(x):
    return 0.5 * (SCALES * x.square()).sum()


def quartic(x):
    return x.square().sum().square() / 4


def rosenbrock(x):
    return residuals(x).square().sum() / 2


def residuals(x):
    return torch.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])


def twin(function, slope, hessian, x, steps, gamma=1.0):
    """The method as its paper writes it, in numpy with general solves."""
    values = [function(x)]
    for _ in range(steps):
        g, h = slope(x), hessian(x)
        while True:
            strength = np.linalg.norm(g) / (gamma + 1e-8)
            move = -np.linalg.solve(h + strength * np.eye(len(x)), g)
            new = function(x + move)
            if function(x) - new >= np.linalg.norm(slope(x + move)) ** 2 / (8 * strength):
                break
            gamma /= 2
        gamma *= 2
        x = x + move
        values.append(new)
    return x, values


def test_quadratic_with_its_hessian_doubles_gamma_and_becomes_newton():
    found = regularized_newton(quadratic, START, exact(quadratic), steps=3, tolerance=0.0)
    assert found.values[1:] == pytest.approx([3.213889, 1.075239, 0.0779297], rel=1e-6)
    assert found.gammas == (1.0, 2.0, 4.0, 8.0)
    one = regularized_newton(quadratic, START, exact(quadratic), steps=1, tolerance=0.0)
    torch.testing.assert_close(one.x - START, torch.tensor([-0.5, -0.266667]).double(), atol=1e-6, rtol=0)
    assert regularized_newton(quadratic, START, exact(quadratic)).iterations < 9
    assert START.tolist() == [3.0, 0.4]


def test_no_hessian_is_the_normalised_gradient():
    one = regularized_newton(quadratic, START, steps=1)
    torch.testing.assert_close(one.x - START, torch.tensor([-0.6, -0.8]).double(), atol=1e-7, rtol=0)
    assert one.value == pytest.approx(3.68, abs=1e-6)
    more = regularized_newton(quadratic, START, steps=3)
    # One halving from 2, then two from 2: the radii that were used are half of what is noted after the step.
    assert more.gammas[2] / 2 == 1.0
    assert more.gammas[3] / 2 == 0.5


@pytest.mark.parametrize(
    ("hessian", "move", "value"),
    [(exact(quartic), -0.226541, 0.0043775), (fisher(lambda x: quartic(x)[None], 0.5), -0.292893, 0.00017918)],
)
def test_quartic_by_its_hessian_and_by_the_fisher_term(hessian, move, value):
    """f = ||x||^4 / 4: (p - 2) / ||x||^p = 2 / ||x||^4 weighs the Fisher term, 1/2 at (1, 1)."""
    start = torch.ones(2, dtype=torch.float64)
    one = regularized_newton(quartic, start, hessian, steps=1)
    torch.testing.assert_close(one.x - start, torch.full((2,), move).double(), atol=1e-6, rtol=0)

    def rank_one(x):
        return 2.0 * torch.outer(x, x)

    torch.testing.assert_close(hessian(start) if move < -0.25 else rank_one(start), rank_one(start))
    four = regularized_newton(quartic, start, rank_one if move < -0.25 else hessian, steps=4)
    assert four.value == pytest.approx(value, rel=1e-4)


def test_equals_a_twin_on_rosenbrock():
    def slope(x):
        u = np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])
        return np.array([[-20 * x[0], 10.0], [-1.0, 0.0]]).T @ u

    def hessian(x):
        jacobian = np.array([[-20 * x[0], 10.0], [-1.0, 0.0]])
        return jacobian.T @ jacobian

    start = np.array([-1.2, 1.0])
    x, values = twin(
        lambda x: 50 * (x[1] - x[0] ** 2) ** 2 + 0.5 * (1 - x[0]) ** 2, slope, hessian, start, 12, gamma=0.3
    )
    gn = gauss_newton(residuals, lambda u: u.square().sum() / 2)
    found = regularized_newton(rosenbrock, torch.from_numpy(start), gn, gamma=0.3, steps=12, tolerance=0.0)
    assert found.values == pytest.approx(values, rel=1e-9)
    np.testing.assert_allclose(found.x.numpy(), x, rtol=1e-9)


@pytest.mark.parametrize("hessian", [exact(quadratic), None])
def test_every_step_descends_within_its_radius(hessian):
    points = [START]
    for steps in range(1, 6):
        points.append(regularized_newton(quadratic, START, hessian, steps=steps, tolerance=0.0).x)
    found = regularized_newton(quadratic, START, hessian, steps=5, tolerance=0.0)
    assert all(one > two for one, two in zip(found.values, found.values[1:], strict=False))
    for one, two, doubled in zip(points, points[1:], found.gammas[1:], strict=False):
        assert (two - one).norm() <= doubled / 2 + 1e-8


def test_scaling_the_function_and_its_hessian_changes_nothing():
    times = 1000.0
    one = regularized_newton(quadratic, START, exact(quadratic), steps=4, tolerance=0.0)
    two = regularized_newton(lambda x: times * quadratic(x), START, exact(lambda x: times * quadratic(x)), steps=4)
    torch.testing.assert_close(one.x, two.x, atol=1e-12, rtol=1e-9)


def test_a_metric_is_a_change_of_variables():
    """With B = C^T C the iterates are those for y = C x with the identity."""
    change = torch.tensor([[2.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
    back = torch.linalg.inv(change)
    inner = regularized_newton(
        lambda y: quadratic(back @ y), change @ START, exact(lambda y: quadratic(back @ y)), steps=3
    )
    outer = regularized_newton(quadratic, START, exact(quadratic), change.T @ change, steps=3)
    torch.testing.assert_close(change @ outer.x, inner.x, atol=1e-10, rtol=0)
    assert outer.gradient_norm == pytest.approx(inner.gradient_norm, rel=1e-9)


def test_an_indefinite_hessian_only_shortens_the_steps():
    saddle = lambda x: (x[0] ** 2 - 1.0) ** 2 / 4 + x[1] ** 2 / 2  # noqa: E731
    start = torch.tensor([0.1, 1.0], dtype=torch.float64)
    found = regularized_newton(saddle, start, exact(saddle), gamma=1000.0)
    assert found.converged
    torch.testing.assert_close(found.x, torch.tensor([1.0, 0.0]).double(), atol=1e-6, rtol=0)
    assert found.solves > found.iterations


def test_a_function_with_no_way_down_ends_the_search():
    start = torch.tensor([1.0], dtype=torch.float64)
    found = regularized_newton(lambda x: torch.where(x == 1.0, x, x + 5.0).sum(), start)
    assert not found.converged
    assert (found.iterations, found.solves) == (0, 40)
    assert torch.equal(found.x, start)


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="gamma"):
        regularized_newton(quadratic, START, gamma=0.0)
    with pytest.raises(RecipeError, match="shape"):
        regularized_newton(quadratic, START[None])
    with pytest.raises(RecipeError, match="metric"):
        regularized_newton(quadratic, START, metric=-torch.eye(2))
    with pytest.raises(RecipeError, match="nan"):
        regularized_newton(lambda x: (x * float("nan")).sum(), START)
    with pytest.raises(RecipeError, match="no place in a recipe") as caught:
        parse_arm("adamw+gradient_normalized")
    assert "optimizers.md" in caught.value.fix
