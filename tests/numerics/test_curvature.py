"""Hessian-vector products against Hessians written out."""

from __future__ import annotations

import pytest
import torch

from thalweg.numerics.curvature import finite_difference_product, gradient, hessian_vector_product, norm


def network(dtype=torch.float64):
    """A loss of two tensors that is no quadratic, and its Hessian [14, 14]."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(9, n, generator=generator, dtype=dtype) for n in (3, 2))
    first, second = (torch.randn(n, 2, generator=generator, dtype=dtype).requires_grad_() for n in (3, 2))

    def loss_of(one, two):
        return ((torch.tanh(inputs @ one) @ two - targets) ** 2).mean()

    def flat(theta):
        return loss_of(theta[:6].view(3, 2), theta[6:].view(2, 2))

    theta = torch.cat([first.detach().flatten(), second.detach().flatten()])
    vector = [torch.randn(part.shape, generator=generator, dtype=dtype) for part in (first, second)]
    expected = torch.autograd.functional.hessian(flat, theta) @ torch.cat([part.flatten() for part in vector])
    return [first, second], lambda: loss_of(first, second), vector, expected


def flattened(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_double_backward_is_exact():
    parameters, loss, vector, expected = network()
    product = hessian_vector_product(loss, parameters, vector)
    assert [part.shape for part in product] == [(3, 2), (2, 2)]
    torch.testing.assert_close(flattened(product), expected, rtol=1e-12, atol=1e-12)
    assert not any(part.requires_grad for part in product)
    assert all(parameter.grad is None for parameter in parameters)


def test_finite_differences_come_near_and_err_by_the_distance():
    parameters, loss, vector, expected = network()
    before = [parameter.detach().clone() for parameter in parameters]
    errors = []
    for distance in (1e-2, 1e-3):
        product = finite_difference_product(lambda: gradient(loss, parameters), parameters, vector, distance=distance)
        errors.append(float((flattened(product) - expected).norm() / expected.norm()))
        assert all(torch.equal(one, two) for one, two in zip(parameters, before, strict=True))
    assert errors[0] < 0.02
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


def test_finite_differences_are_good_enough_in_single_precision():
    parameters, loss, vector, expected = network(torch.float32)
    here = gradient(loss, parameters)
    product = finite_difference_product(lambda: gradient(loss, parameters), parameters, vector, here)
    assert float((flattened(product) - expected).norm() / expected.norm()) < 0.02


def test_a_quadratic_is_exact_at_any_distance():
    scales = torch.tensor([4.0, 1.0], dtype=torch.float64)
    theta = torch.tensor([0.75, 4.0], dtype=torch.float64, requires_grad=True)

    def loss():
        return 0.5 * (scales * theta**2).sum()

    slope = gradient(loss, [theta])
    assert slope[0].tolist() == [3.0, 4.0]
    assert hessian_vector_product(loss, [theta], slope)[0].tolist() == [12.0, 4.0]
    product = finite_difference_product(lambda: gradient(loss, [theta]), [theta], slope, distance=10.0)
    assert product[0].tolist() == pytest.approx([12.0, 4.0], rel=1e-12)


def test_what_the_loss_is_linear_in_or_ignores_has_no_curvature():
    one, two, three = (torch.ones(2, requires_grad=True) for _ in range(3))
    vector = [torch.ones(2)] * 3
    product = hessian_vector_product(lambda: one.sum() + (two**2).sum(), [one, two, three], vector)
    assert [part.tolist() for part in product] == [[0, 0], [2, 2], [0, 0]]
    assert hessian_vector_product(lambda: one.sum(), [one], vector[:1])[0].tolist() == [0, 0]


def test_parameters_are_put_back_when_the_gradient_fails():
    theta = torch.tensor([0.1, 0.2], requires_grad=True)

    def broken():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        finite_difference_product(broken, [theta], [torch.ones(2)], here=[torch.ones(2)])
    assert torch.equal(theta, torch.tensor([0.1, 0.2]))


def test_norms():
    tensors = [torch.tensor([3.0, -4.0]), torch.tensor([[12.0]])]
    assert float(norm(tensors)) == pytest.approx(13.0)
    assert float(norm(tensors, order=1.0)) == pytest.approx(19.0)
