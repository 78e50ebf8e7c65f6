"""LARS against the numbers of its sheet, a tensor-by-tensor reference, and its invariance to the scale of layers."""

from __future__ import annotations

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.optimizers import LARS

WEIGHT = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
SLOPE = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)


def walk(weights, gradients, rates=None, **options):
    """Parameters after one step a list of gradients, one for each parameter."""
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = LARS(parameters, **options)
    for index, step in enumerate(gradients):
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[index]
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def reference(weight, gradients, lr, decay, momentum, trust, normalise):
    """One matrix, as the docstring writes it."""
    v = torch.zeros_like(weight)
    for g in gradients:
        if normalise == "gradient":
            local = trust * weight.norm() / (g.norm() + decay * weight.norm())
            v = momentum * v + local * (g + decay * weight)
            weight = weight - lr * v
        else:
            v = momentum * v + (1 - momentum) * (g + decay * weight)
            weight = weight - lr * trust * weight.norm() / v.norm() * v
    return weight


def problem(shapes=((6, 4), (5,), (2, 3, 4)), steps=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    return weights, [
        [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes] for _ in range(steps)
    ]


def test_worked_first_step():
    (weight,) = walk([WEIGHT], [[SLOPE]], lr=1.0, weight_decay=0.0005, trust=0.001)
    expected = torch.tensor([[2.997817, 0.0043596], [-0.0010899, 3.9999956]], dtype=torch.float64)
    torch.testing.assert_close(weight, expected, atol=5e-7, rtol=0)


@pytest.mark.parametrize("normalise", ["gradient", "momentum"])
def test_equals_the_reference(normalise):
    weights, gradients = problem()
    options = {"trust": 0.3, "momentum": 0.8, "normalise": normalise}
    results = walk(weights, gradients, lr=0.1, weight_decay=0.05, **options)
    for index in (0, 2):
        own = [step[index] for step in gradients]
        expected = reference(weights[index], own, 0.1, 0.05, 0.8, 0.3, normalise)
        torch.testing.assert_close(results[index], expected, atol=1e-12, rtol=1e-12)


def test_vectors_are_torchs_momentum_sgd_without_decay():
    weights, gradients = problem([(5,), ()])
    results = walk(weights, gradients, lr=0.1, weight_decay=0.5)
    theirs = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    for step in gradients:
        for parameter, gradient in zip(theirs, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for one, two in zip(results, theirs, strict=True):
        torch.testing.assert_close(one, two.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("normalise", ["gradient", "momentum"])
def test_a_layer_moves_by_its_norm_whatever_the_gradient(normalise):
    for factor in (1e-6, 1.0, 1e6):
        (weight,) = walk([WEIGHT], [[SLOPE * factor]], lr=0.1, momentum=0.0, trust=0.02, normalise=normalise)
        assert (weight - WEIGHT).norm().item() == pytest.approx(0.1 * 0.02 * 5.0, rel=1e-9)


def test_the_weight_decays_part_of_the_denominator_holds_back_small_gradients():
    """||g|| far below wd ||w||: the step is the decay's, lr trust ||w||, not lr trust ||w|| (||wd w|| / ||g||)."""
    (weight,) = walk([WEIGHT], [[SLOPE * 1e-9]], lr=1.0, weight_decay=0.1, momentum=0.0, trust=0.001)
    torch.testing.assert_close(weight, WEIGHT * 0.999, atol=1e-9, rtol=0)


def test_zero_weights_and_zero_gradients_have_ratio_one():
    (weight,) = walk([torch.zeros(2, 2)], [[torch.ones(2, 2)]], lr=0.1)
    assert torch.equal(weight, torch.full((2, 2), -0.1))
    (weight,) = walk([WEIGHT], [[torch.zeros_like(WEIGHT)]], lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(weight, WEIGHT * (1 - 0.1 * 0.5), atol=1e-12, rtol=0)


def test_the_papers_place_of_the_rate_is_the_same_while_it_is_constant_and_lags_when_it_changes():
    weights, gradients = problem([(6, 4)], steps=6)

    def papers(rates):
        w, v = weights[0], torch.zeros_like(weights[0])
        for rate, (g,) in zip(rates, gradients, strict=True):
            v = 0.9 * v + rate * w.norm() / g.norm() * g
            w = w - v
        return w

    constant, falling = [0.01] * 6, [0.01] * 3 + [0.0] * 3
    torch.testing.assert_close(walk(weights, gradients, constant)[0], papers(constant), atol=1e-12, rtol=0)
    assert torch.equal(walk(weights, gradients, falling)[0], walk(weights, gradients[:3], constant[:3])[0])
    assert (papers(falling) - papers([0.01] * 3 + [0.01, 0.0, 0.0])).norm() > 0.01
    assert (walk(weights, gradients, falling)[0] - papers(falling)).norm() > 0.05


def trajectory(optimizer_of, scales):
    """Outputs after five steps of a ReLU net whose layers were multiplied by `scales` (their product is 1)."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(*shape, bias=False).double() for shape in ((6, 16), (16, 16), (16, 3))]
    net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    with torch.no_grad():
        for layer, scale in zip(layers, scales, strict=True):
            layer.weight.mul_(scale)
    inputs = torch.randn(32, 6, dtype=torch.float64)
    labels = torch.randint(3, (32,))
    optimizer = optimizer_of(net.parameters())
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    return net(inputs).detach()


def test_scales_of_layers_do_not_matter_as_they_do_to_sgd():
    def lars(parameters):
        return LARS(parameters, lr=0.05)

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    scales = ((1.0, 1.0, 1.0), (10.0, 0.1, 1.0))
    ours, plain = ([trajectory(optimizer, scale) for scale in scales] for optimizer in (lars, sgd))
    assert (ours[0] - ours[1]).abs().max() < 1e-12
    assert (plain[0] - plain[1]).abs().max() > 0.05


def test_mistakes_are_named():
    for options in ({"normalise": "weights"}, {"trust": -1.0}, {"momentum": 1.0}, {"lr": -0.1}):
        with pytest.raises(RecipeError, match=next(iter(options))):
            LARS([torch.nn.Parameter(torch.ones(2, 2))], **options)
