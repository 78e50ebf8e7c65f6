"""The factor of the inverse Hessian, in the numbers of the sheets, and where there is no inverse."""

from __future__ import annotations

import pytest
import torch

from thalweg.numerics.inverse_hessian import inverse_factor

# The inputs of the sheet's worked example.
INPUTS = torch.tensor(
    [[1, 0, 1, 2], [0, 1, 1, 0], [2, 0, 1, 1], [0, 2, 0, 1], [1, 1, 0, 0], [0, 0, 3, 1]], dtype=torch.float64
)


def hessian(size=12, tokens=60, dtype=torch.float64):
    inputs = torch.randn(tokens, size, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return inputs.T @ inputs / tokens


def test_the_numbers_of_the_sheet():
    upper = inverse_factor(INPUTS.T @ INPUTS, 0.01).upper
    assert upper.diagonal().tolist() == pytest.approx([0.5137, 0.4286, 0.3782, 0.3759], abs=5e-5)
    upper = inverse_factor(torch.tensor([[2.0, 1.8], [1.8, 2.0]], dtype=torch.float64), 0.0).upper
    assert upper.flatten().tolist() == pytest.approx([1.622214, -1.459993, 0.0, 0.707107], abs=1e-6)


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.1])
def test_it_is_the_factor_of_the_damped_inverse(damping):
    given = hessian()
    before = given.clone()
    found = inverse_factor(given, damping)
    damped = given + damping * given.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(found.upper.T @ found.upper, torch.linalg.inv(damped), rtol=1e-9, atol=1e-12)
    assert torch.equal(found.upper, found.upper.triu())
    assert found.damping == damping
    assert not found.dead.any()
    assert torch.equal(given, before)


def test_its_rows_are_those_of_the_inverses_of_what_remains():
    given = hessian()
    upper = inverse_factor(given, 0.0).upper
    for first in range(12):
        row = torch.linalg.inv(given[first:, first:])[0]
        torch.testing.assert_close(upper[first, first] * upper[first, first:], row, rtol=1e-8, atol=1e-10)


def test_the_factor_in_the_hessian_is_only_a_scale():
    one, other = inverse_factor(hessian()), inverse_factor(hessian() * 100.0)
    torch.testing.assert_close(one.upper, other.upper * 10.0)


def test_inputs_that_are_always_zero_stand_alone():
    inputs = INPUTS.clone()
    inputs[:, 1] = 0
    found = inverse_factor(inputs.T @ inputs, 0.01)
    assert found.dead.tolist() == [False, True, False, False]
    upper = found.upper
    assert upper[1, 2:].abs().max() == upper[0, 1] == 0
    # The others are as they would be without it, but for damping by a mean over one more.
    alive = inputs[:, [0, 2, 3]]
    inverse = torch.linalg.inv(alive.T @ alive + 0.01 * (inputs.square().sum() / 4) * torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close((upper.T @ upper)[[0, 2, 3]][:, [0, 2, 3]], inverse)


def test_nothing_but_zeros_has_a_factor():
    found = inverse_factor(torch.zeros(3, 3))
    assert found.dead.all()
    assert torch.equal(found.upper, torch.eye(3))


def test_damping_is_raised_as_far_as_it_must_be():
    inputs = torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    singular = inputs.T @ inputs
    singular[0, 0] -= 0.05 * singular.diagonal().mean()  # now one eigenvalue is below zero
    assert torch.linalg.eigvalsh(singular)[0] < 0
    found = inverse_factor(singular, 0.01)
    assert found.damping == pytest.approx(0.1)
    assert inverse_factor(singular, 0.1).damping == 0.1
    assert found.upper.isfinite().all()
    # Few tokens in float32 without any damping: enough is found, and no more.
    assert 0 < inverse_factor((inputs.T @ inputs).float(), 0.0).damping <= 0.1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value):
    given = hessian()
    given[3, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        inverse_factor(given)


def test_what_no_damping_makes_positive_is_refused():
    with pytest.raises(ValueError, match="any damping"):
        inverse_factor(-hessian())
