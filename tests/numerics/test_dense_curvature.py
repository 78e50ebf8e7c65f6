"""Dense Hessians and their approximations against matrices written out by hand."""

from __future__ import annotations

import torch

from thalweg.numerics.dense_curvature import exact, fisher, gauss_newton


def test_exact_hessian_of_a_quadratic():
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    x = torch.tensor([0.3, -1.0], dtype=torch.float64)
    torch.testing.assert_close(exact(lambda x: 0.5 * x @ matrix @ x)(x), matrix)


def test_gauss_newton_of_powers_of_a_norm():
    """||u||^(p-2) J^T J + (p-2) ||u||^(p-4) (J^T u)(J^T u)^T with p = 4."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    shift, x = torch.randn(5, dtype=torch.float64, generator=generator), torch.ones(3, dtype=torch.float64)
    outputs = lambda x: matrix @ x - shift  # noqa: E731
    u = outputs(x)
    slope = matrix.T @ u
    expected = u.norm() ** 2 * matrix.T @ matrix + 2 * torch.outer(slope, slope)
    loss = lambda u: u.square().sum().square() / 4  # noqa: E731
    torch.testing.assert_close(gauss_newton(outputs, loss)(x), expected)
    torch.testing.assert_close(exact(lambda x: loss(outputs(x)))(x), expected)


def test_fisher_is_the_sum_of_squares_of_the_terms_gradients():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    x = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    terms = lambda x: torch.nn.functional.softplus(-rows @ x)  # noqa: E731
    slopes = -torch.sigmoid(-rows @ x)[:, None] * rows
    torch.testing.assert_close(fisher(terms)(x), sum(torch.outer(s, s) for s in slopes))
    torch.testing.assert_close(fisher(terms, 0.5)(x), 0.5 * fisher(terms)(x))
