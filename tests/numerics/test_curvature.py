"""Hessian-vector products against Hessians written out, and Lanczos against matrices whose spectra are known."""

from __future__ import annotations

import pytest
import torch

from thalweg.numerics.curvature import finite_difference_product, gradient, hessian_vector_product, lanczos, norm


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


def matrix_of(values, seed=0, dtype=torch.float64):
    """A symmetric matrix with these eigenvalues, and a random vector, both for one tensor or two in a list."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    matrix = (basis * torch.tensor(values, dtype=torch.float64)) @ basis.T
    return matrix.to(dtype), [torch.randn(len(values), generator=generator, dtype=dtype)]


def test_lanczos_finds_the_top_of_a_known_spectrum():
    values = [50.0, 30.0, 29.0, *torch.linspace(-5, 10, 97).tolist()]
    matrix, start = matrix_of(values)
    found = lanczos(lambda v: [matrix @ v[0]], start, count=3, tolerance=1e-8)
    assert found.values == pytest.approx([50.0, 30.0, 29.0], rel=1e-6)
    assert max(found.errors) < 1e-6
    assert found.products < 60
    for value, vector in zip(found.values, found.vectors, strict=True):
        assert float(norm(vector)) == pytest.approx(1.0)
        assert float((matrix @ vector[0] - value * vector[0]).norm()) < 1e-6


def test_lanczos_wants_the_largest_and_not_the_largest_in_size():
    """Power iteration would end at -80."""
    matrix, start = matrix_of([-80.0, -3.0, 1.0, 2.0, 7.0, 4.0])
    assert lanczos(lambda v: [matrix @ v[0]], start, tolerance=1e-10).values == pytest.approx([7.0])


def test_errors_bound_the_distance_to_an_eigenvalue():
    values = torch.linspace(0.0, 1.0, 200).square().tolist()
    matrix, start = matrix_of(values)
    found = lanczos(lambda v: [matrix @ v[0]], start, count=2, steps=12, tolerance=0.0)
    assert found.products == 12
    for value, error in zip(found.values, found.errors, strict=True):
        assert 1e-6 < min(abs(value - true) for true in values) <= error * (1 + 1e-9) < 0.1


def test_a_few_steps_suffice_where_few_dimensions_matter():
    """An exact answer in single precision, for a matrix of rank one and a start in three dimensions of twenty."""
    direction = torch.randn(20, generator=torch.Generator().manual_seed(3))
    found = lanczos(lambda v: [direction * (direction @ v[0])], [torch.ones(20)], count=1)
    assert found.values[0] == pytest.approx(float(direction @ direction), rel=1e-5)
    assert found.products == 2
    diagonal = torch.arange(20.0)
    start = torch.zeros(20)
    start[[3, 7, 11]] = 1.0
    found = lanczos(lambda v: [diagonal * v[0]], [start], count=5)
    assert found.values == pytest.approx([11.0, 7.0, 3.0], rel=1e-5)


def test_one_step_gives_the_rayleigh_quotients_of_power_iteration():
    """diag(1, 10) from (1, 1): 9.9109, 9.9991, 9.99999 after one, two and three products."""
    scales, vector, quotients = torch.tensor([1.0, 10.0], dtype=torch.float64), torch.ones(2).double(), []
    for _ in range(3):
        vector = scales * vector
        quotients += lanczos(lambda v: [scales * v[0]], [vector], steps=1).values
    assert quotients == pytest.approx([9.9109, 9.9991, 9.99999], abs=6e-5)
    warm = lanczos(lambda v: [scales * v[0]], [vector], tolerance=1e-2)
    assert warm.products == 1


def test_spectrum_of_a_hessian_over_several_tensors():
    parameters, loss, _, _ = network()
    columns = []
    for index in range(10):
        flat = torch.zeros(10, dtype=torch.float64)
        flat[index] = 1.0
        columns.append(flattened(hessian_vector_product(loss, parameters, [flat[:6].view(3, 2), flat[6:].view(2, 2)])))
    expected = torch.linalg.eigvalsh(torch.stack(columns)).flip(0)
    start = [torch.ones_like(parameter) for parameter in parameters]
    found = lanczos(lambda v: hessian_vector_product(loss, parameters, v), start, count=2, tolerance=1e-10)
    assert found.values == pytest.approx(expected[:2].tolist(), rel=1e-6)
    assert [part.shape for part in found.vectors[0]] == [(3, 2), (2, 2)]


def test_descent_is_stable_while_rate_times_curvature_is_below_two():
    matrix, start = matrix_of([6.0, 2.0, 0.5])
    [top] = lanczos(lambda v: [matrix @ v[0]], start, tolerance=1e-10).values
    ends = []
    for limit in (1.98, 2.02):
        x = start[0].clone()
        for _ in range(400):
            x = x - limit / top * (matrix @ x)
        ends.append(float(x.norm()))
    assert ends[0] < 1e-2 < 1e2 < ends[1]
