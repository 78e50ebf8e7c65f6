"""The factor of the Hessian, in the numbers of the sheets, and where the matrix is singular."""

from __future__ import annotations

import pytest
import torch

from thalweg.numerics.hessian_factor import at_best, hessian_factor

# The inputs of the sheet's worked example.
INPUTS = torch.tensor(
    [[1, 0, 1, 2], [0, 1, 1, 0], [2, 0, 1, 1], [0, 2, 0, 1], [1, 1, 0, 0], [0, 0, 3, 1]], dtype=torch.float64
)


def hessian(size=12, tokens=60, dtype=torch.float64):
    inputs = torch.randn(tokens, size, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return inputs.T @ inputs / tokens


def upper_of(factor):
    """U with H^-1 = U^T U, as papers and sheets have it: D^-1/2 (I + F)^-1."""
    identity = torch.eye(len(factor.feedback), dtype=factor.feedback.dtype)
    return torch.linalg.inv(identity + factor.feedback) / factor.cost.sqrt()[:, None]


def test_the_numbers_of_the_sheets():
    upper = upper_of(hessian_factor(INPUTS.T @ INPUTS, 0.01))
    assert upper.diagonal().tolist() == pytest.approx([0.5137, 0.4286, 0.3782, 0.3759], abs=5e-5)
    upper = upper_of(hessian_factor(torch.tensor([[2.0, 1.8], [1.8, 2.0]], dtype=torch.float64), 0.0))
    assert upper.flatten().tolist() == pytest.approx([1.622214, -1.459993, 0.0, 0.707107], abs=1e-6)
    related = torch.tensor([[2.0, 1, 0], [1, 2, 1], [0, 1, 2]], dtype=torch.float64)
    expected = [0.8660, -0.5774, 0.2887, 0, 0.8165, -0.4082, 0, 0, 0.7071]
    assert upper_of(hessian_factor(related, 0.0)).flatten().tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.1])
def test_it_is_the_factor_of_the_damped_matrix(damping):
    given = hessian()
    before = given.clone()
    found = hessian_factor(given, damping)
    damped = given + damping * given.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    whole = found.feedback + torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close((whole * found.cost) @ whole.T, damped, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.feedback, found.feedback.triu(1))
    assert found.damping == damping
    assert not found.dead.any()
    assert torch.equal(given, before)


def test_what_a_column_costs_and_asks_of_the_others():
    """By the inverse of what remains: moving w_i by -1 costs 1 / [H^-1]_ii, and moves the others by its row."""
    given = hessian()
    found = hessian_factor(given, 0.0)
    for first in range(12):
        row = torch.linalg.inv(given[first:, first:])[0]
        assert float(found.cost[first]) == pytest.approx(1.0 / float(row[0]), rel=1e-9)
        # What the first asks is what the second is asked for by both, and so on: a solve against I + F.
        asked = torch.zeros(12 - first, dtype=torch.float64)
        asked[0] = 1.0
        moves = torch.linalg.solve(torch.eye(12 - first) + found.feedback[first:, first:].T, asked)
        torch.testing.assert_close(moves, row / row[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("settled", [0, 1, 5, 11])
def test_at_best_is_where_the_error_is_least(settled):
    """By solving for all columns that are left at once, some way ahead."""
    given = hessian()
    found = hessian_factor(given, 0.0)
    generator = torch.Generator().manual_seed(1)
    original, moved = (torch.randn(5, 12, dtype=torch.float64, generator=generator) for _ in range(2))
    # The error is least where the change d has d H = 0 on the columns that are left.
    rest = -torch.linalg.solve(given[settled:, settled:], given[settled:, :settled] @ moved[:, :settled].T).T
    asked = original - moved[:, :settled] @ found.feedback[:settled]
    ahead = slice(settled, min(settled + 4, 12))
    best = at_best(original[:, ahead], asked[:, ahead], found.feedback[ahead, ahead])
    torch.testing.assert_close(best - original[:, ahead], rest[:, :4], rtol=1e-8, atol=1e-10)


def test_the_scale_of_the_hessian_is_that_of_the_cost():
    one, other = hessian_factor(hessian()), hessian_factor(hessian() * 100.0)
    torch.testing.assert_close(one.feedback, other.feedback)
    torch.testing.assert_close(one.cost * 100.0, other.cost)


def test_single_precision_is_double_precision_rounded():
    double, single = hessian_factor(hessian().float().double()), hessian_factor(hessian().float())
    assert single.feedback.dtype == single.cost.dtype == torch.float32
    assert torch.equal(double.feedback.float(), single.feedback)
    assert torch.equal(double.cost.float(), single.cost)


def test_inputs_that_are_always_zero_stand_alone():
    inputs = INPUTS.clone()
    inputs[:, 1] = 0
    found = hessian_factor(inputs.T @ inputs, 0.01)
    assert found.dead.tolist() == [False, True, False, False]
    assert found.feedback[1, 2:].abs().max() == found.feedback[0, 1] == 0
    upper = upper_of(found)
    # The others are as they would be without it, but for damping by a mean over one more.
    alive = inputs[:, [0, 2, 3]]
    inverse = torch.linalg.inv(alive.T @ alive + 0.01 * (inputs.square().sum() / 4) * torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close((upper.T @ upper)[[0, 2, 3]][:, [0, 2, 3]], inverse)


def test_nothing_but_zeros_has_a_factor():
    found = hessian_factor(torch.zeros(3, 3))
    assert found.dead.all()
    assert not found.feedback.any()
    assert torch.equal(found.cost, torch.ones(3))


def test_damping_is_raised_as_far_as_it_must_be():
    inputs = torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    singular = inputs.T @ inputs
    singular[0, 0] -= 0.05 * singular.diagonal().mean()  # now one eigenvalue is below zero
    assert torch.linalg.eigvalsh(singular)[0] < 0
    found = hessian_factor(singular, 0.01)
    assert found.damping == pytest.approx(0.1)
    assert hessian_factor(singular, 0.1).damping == 0.1
    assert found.feedback.isfinite().all()
    # Few tokens in float32 without any damping: enough is found, and no more.
    assert 0 < hessian_factor((inputs.T @ inputs).float(), 0.0).damping <= 0.1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value):
    given = hessian()
    given[3, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        hessian_factor(given)


def test_what_no_damping_makes_positive_is_refused():
    with pytest.raises(ValueError, match="any damping"):
        hessian_factor(-hessian())
