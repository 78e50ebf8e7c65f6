"""Gradient noise: its size, its independence, and that it is a function of (seed, step, parameter)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.optimizers import GradientNoise
from thalweg.methods.optimizers.gradient_noise import add_gradient_noise, noise_scale

STEPS = (0, 1, 10, 100, 1000, 10000)


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        (0.01, [0.1, 0.08265, 0.05172, 0.02811, 0.01496, 0.00794]),
        (0.3, [0.54772, 0.45267, 0.28326, 0.15395, 0.08193, 0.04351]),
        (1.0, [1, 0.82645, 0.51715, 0.28107, 0.14958, 0.07943]),
    ],
)
def test_sigma_is_a_standard_deviation(eta, expected):
    assert [noise_scale(step, eta, 0.55) for step in STEPS] == pytest.approx(expected, abs=1e-5)


def with_gradients(*values):
    parameters = [torch.nn.Parameter(torch.zeros_like(value)) for value in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = value.clone()
    return parameters


def noise_of(step, seed=0, size=200_000, **options):
    (parameter,) = with_gradients(torch.zeros(size))
    add_gradient_noise([parameter], step, seed=seed, **options)
    return parameter.grad


def test_variance_and_mean():
    for step in (0, 10, 1000):
        noise = noise_of(step, eta=0.3)
        assert noise.var().item() == pytest.approx(noise_scale(step, 0.3, 0.55) ** 2, rel=0.02)
        assert abs(noise.mean().item()) < 4 * noise_scale(step, 0.3, 0.55) / 200_000**0.5


def test_independent_of_other_tensors_steps_and_seeds():
    first, second = with_gradients(torch.zeros(100_000), torch.zeros(100_000))
    add_gradient_noise([first, second], 3, eta=1.0, gamma=0.0, seed=1)
    others = [second.grad, noise_of(4, 1, 100_000, eta=1.0, gamma=0.0), noise_of(3, 2, 100_000, eta=1.0, gamma=0.0)]
    for other in others:
        assert abs((first.grad * other).mean().item()) < 0.015
    assert torch.equal(first.grad, noise_of(3, 1, 100_000, eta=1.0, gamma=0.0))


def test_zero_eta_changes_nothing_and_the_global_random_state_is_left_alone():
    gradient = torch.randn(7, generator=torch.Generator().manual_seed(0))
    (parameter,) = with_gradients(gradient)
    state = torch.get_rng_state()
    add_gradient_noise([parameter], 0, eta=0.0)
    assert torch.equal(parameter.grad, gradient)
    add_gradient_noise([parameter], 0, eta=1.0)
    assert torch.equal(state, torch.get_rng_state())


def test_a_parameter_without_gradient_does_not_shift_the_others():
    first, second = with_gradients(torch.zeros(5), torch.zeros(5))
    add_gradient_noise([first, second], 0, eta=1.0)
    kept = second.grad.clone()
    first.grad, second.grad = None, torch.zeros(5)
    add_gradient_noise([first, second], 0, eta=1.0)
    assert first.grad is None
    assert torch.equal(second.grad, kept)


def test_sgd_on_a_flat_function_walks_at_random():
    """Var(w_T) = lr^2 sum_t eta / (1 + t)^0.55."""
    parameter = torch.nn.Parameter(torch.zeros(100_000))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    for step in range(20):
        parameter.grad = torch.zeros_like(parameter)
        add_gradient_noise([parameter], step, eta=0.3)
        optimizer.step()
    expected = 0.25 * sum(0.3 / (1 + step) ** 0.55 for step in range(20))
    assert parameter.var().item() == pytest.approx(expected, rel=0.02)


def test_noise_breaks_an_all_zero_start():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU(), torch.nn.Linear(4, 2, bias=False))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model(torch.ones(1, 3)).square().sum().backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())
    add_gradient_noise(model.parameters(), 0, eta=0.01)
    assert all(parameter.grad.all() for parameter in model.parameters())


def trainer(parameters, step=0):
    return SimpleNamespace(parameters=parameters, clock=SimpleNamespace(step=step), seed=5)


def test_relative_noise_is_in_units_of_each_gradient():
    values = [torch.full((200_000,), 1e-4), torch.full((200_000,), 10.0)]
    parameters = with_gradients(*values)
    GradientNoise(eta=0.04, relative=True).gradients(trainer(parameters))
    for parameter, value in zip(parameters, values, strict=True):
        assert ((parameter.grad - value).std() / value[0]).item() == pytest.approx(0.2, rel=0.01)


def test_running_rms_follows_the_gradients():
    """After gradients of size 1 and then 3: mean square (0.09 * 1 + 0.1 * 9) / 0.19."""
    noise = GradientNoise(eta=1.0, gamma=0.0)
    for step, size in enumerate((1.0, 3.0)):
        parameters = with_gradients(torch.full((400_000,), size))
        noise.gradients(trainer(parameters, step))
    assert (parameters[0].grad - 3.0).std().item() == pytest.approx((0.99 / 0.19) ** 0.5, rel=0.01)


def test_papers_rule_needs_no_state():
    parameters = with_gradients(torch.zeros(200_000))
    noise = GradientNoise(eta=0.01, relative=False)
    noise.gradients(trainer(parameters, step=10))
    assert parameters[0].grad.std().item() == pytest.approx(0.05172, rel=0.01)
    assert "mean_squares" not in noise.state_dict()


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="eta"):
        GradientNoise(eta=-1.0)
    with pytest.raises(RecipeError, match="gamma"):
        GradientNoise(gamma=float("nan"))
