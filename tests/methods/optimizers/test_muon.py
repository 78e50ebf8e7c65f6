"""Muon against a plain matrix-by-matrix reference, its scales and its kinds."""

from __future__ import annotations

import math

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.optimizers import AdamW, Muon
from thalweg.methods.optimizers.newton_schulz import newton_schulz
from thalweg.models.parameter_groups import parameter_groups


def reference(weight, gradients, lr, decay, beta=0.95, nesterov=True, scale="kimi", steps=5):
    """Muon for one matrix as its page writes it, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    buffer = torch.zeros_like(weight)
    rows, columns = weight.shape
    factor = {
        "kimi": 0.2 * max(rows, columns) ** 0.5,
        "kj": max(1, rows / columns) ** 0.5,
        "spectral": (rows / columns) ** 0.5,
        "none": 1.0,
    }[scale]
    for gradient in gradients:
        buffer = beta * buffer + (1 - beta) * gradient
        x = (1 - beta) * gradient + beta * buffer if nesterov else buffer
        x = x / x.norm()
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        weight = weight * (1 - lr * decay) - lr * factor * x
    return weight


def problem(shapes, steps=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    gradients = [
        [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes] for _ in range(steps)
    ]
    return weights, gradients


def run(weights, gradients, number=torch.float64, **options):
    parameters = [torch.nn.Parameter(weight.to(number, copy=True)) for weight in weights]
    optimizer = Muon(parameters, **options)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.to(number)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("scale", ["kimi", "kj", "spectral", "none"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_the_reference(scale, nesterov):
    weights, gradients = problem([(6, 4), (4, 6), (5, 5), (6, 4), (1, 3)])
    results = run(weights, gradients, lr=0.05, weight_decay=0.2, scale=scale, nesterov=nesterov)
    for index, (weight, result) in enumerate(zip(weights, results, strict=True)):
        own = [step[index] for step in gradients]
        expected = reference(weight, own, 0.05, 0.2, nesterov=nesterov, scale=scale)
        torch.testing.assert_close(result, expected, atol=1e-10, rtol=1e-10)


def test_float32_is_near_the_reference_and_bfloat16_within_its_rounding():
    weights, gradients = problem([(24, 16), (16, 24)])
    for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 0.05)):
        results = run(weights, gradients, torch.float32, lr=0.05, weight_decay=0.0, dtype=dtype)
        for index, (weight, result) in enumerate(zip(weights, results, strict=True)):
            moved = reference(weight, [step[index] for step in gradients], 0.05, 0.0) - weight
            assert (result.double() - weight - moved).norm() < tolerance * moved.norm()


def test_vectors_get_adamw():
    weights, gradients = problem([(5,), (3,)])
    ours = run(weights, gradients, lr=0.05, weight_decay=0.2)
    theirs = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = AdamW(theirs, lr=0.05, weight_decay=0.2)
    for step in gradients:
        for parameter, gradient in zip(theirs, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for one, two in zip(ours, theirs, strict=True):
        assert torch.equal(one, two.detach())


def test_kinds_decide(llama, batch_of):
    """A head and an embedding take AdamW's step, whose size is the learning rate; matrices take Muon's."""
    model = llama(tied=False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = Muon(parameter_groups(model, weight_decay=0.0), lr=0.01)
    batch = batch_of(0)
    model(input_ids=batch["input_ids"], labels=batch["targets"]).loss.backward()
    optimizer.step()
    kinds = {id(p): group["kind"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        moved = (parameter - before[name]).abs()
        if kinds[id(parameter)] == "matrix":
            assert "momentum_buffer" in optimizer.state[parameter]
            rms = moved.square().mean().sqrt().item()
            assert 0.001 < rms < 0.01 * 0.2 * 1.2, name
        else:
            assert set(optimizer.state[parameter]) == {"step", "exp_avg", "exp_avg_sq"}
            touched = parameter.grad.abs() > 1e-5
            torch.testing.assert_close(moved[touched], torch.full_like(moved[touched], 0.01), rtol=2e-3, atol=0)


def test_kimi_update_has_rms_one_fifth():
    direction = torch.linalg.qr(torch.randn(40, 24, generator=torch.Generator().manual_seed(0)))[0]
    # For an exact polar factor 0.2 sqrt(max(m, n)) gives an RMS of 0.2; Newton-Schulz maps 1 to 0.7 to 1.13 of it.
    weight = torch.nn.Parameter(torch.zeros(40, 24))
    optimizer = Muon([weight], lr=1.0, weight_decay=0.0, dtype="float32")
    weight.grad = direction
    optimizer.step()
    rms = weight.square().mean().sqrt().item()
    assert 0.2 * 0.68 < rms < 0.2 * 1.14
    expected = 0.2 * math.sqrt(40) * newton_schulz(direction, dtype="float32")
    torch.testing.assert_close(weight.detach(), -expected, atol=1e-6, rtol=0)


def test_stacks_of_experts_and_filters():
    weights, gradients = problem([(3, 4, 6), (4, 2, 3, 2)])
    stack, filters = run(weights, gradients, lr=0.05, weight_decay=0.1)
    for expert in range(3):
        own = [step[0][expert] for step in gradients]
        torch.testing.assert_close(stack[expert], reference(weights[0][expert], own, 0.05, 0.1), atol=1e-10, rtol=0)
    own = [step[1].reshape(4, 12) for step in gradients]
    expected = reference(weights[1].reshape(4, 12), own, 0.05, 0.1)
    torch.testing.assert_close(filters.reshape(4, 12), expected, atol=1e-10, rtol=0)


def test_transposed_groups_scale_like_their_linear_twins():
    weights, gradients = problem([(8, 3)])
    turned = [[step[0].T.contiguous()] for step in gradients]
    for scale in ("kj", "spectral"):
        straight = run(weights, gradients, lr=0.1, weight_decay=0.0, scale=scale)[0]
        parameter = torch.nn.Parameter(weights[0].T.contiguous())
        group = {"params": [parameter], "kind": "matrix", "transposed": True}
        optimizer = Muon([group], lr=0.1, weight_decay=0.0, scale=scale)
        for step in turned:
            parameter.grad = step[0]
            optimizer.step()
        torch.testing.assert_close(parameter.detach().T, straight, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": "huge"}, "scale"),
        ({"dtype": "float16"}, "dtype"),
        ({"momentum": 1.0}, "momentum"),
        ({"ns_steps": 0}, "ns_steps"),
        ({"lr": -1.0}, "lr"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"beta2": 1.5}, "beta2"),
    ],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        Muon([torch.nn.Parameter(torch.ones(2, 2))], **options)


def test_a_vector_among_matrices_is_refused():
    with pytest.raises(RecipeError, match="matrix"):
        Muon([{"params": [torch.nn.Parameter(torch.ones(3))], "kind": "matrix"}])
