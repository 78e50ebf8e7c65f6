"""LAMB against the numbers of its sheet, a tensor-by-tensor reference, Adam, and two ranks against one."""

from __future__ import annotations

import sys

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.optimizers import LAMB, LARS

WEIGHT = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
SLOPE = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)


def walk(weights, gradients, **options):
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = LAMB(parameters, **options)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def reference(weight, gradients, lr, decay, beta1=0.9, beta2=0.999, eps=1e-6):
    m = v = torch.zeros_like(weight)
    for t, g in enumerate(gradients, start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        u = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps) + decay * weight
        weight = weight - lr * weight.norm() / u.norm() * u
    return weight


def problem(shapes, steps=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    return weights, [
        [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes] for _ in range(steps)
    ]


def test_worked_first_step():
    (weight,) = walk([WEIGHT], [[SLOPE]], lr=0.1, weight_decay=0.01)
    expected = torch.tensor([[2.7057, 0.2857], [-0.2857, 3.9886]], dtype=torch.float64)
    torch.testing.assert_close(weight, expected, atol=5e-5, rtol=0)


def test_equals_the_reference():
    weights, gradients = problem([(6, 4), (2, 3, 4)])
    results = walk(weights, gradients, lr=0.1, weight_decay=0.3)
    for index, (weight, result) in enumerate(zip(weights, results, strict=True)):
        expected = reference(weight, [step[index] for step in gradients], 0.1, 0.3)
        # Bias corrections are float32 scalars.
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_every_step_is_that_share_of_the_norm():
    weights, gradients = problem([(6, 4)], steps=4)
    for length in range(1, 5):
        before = walk(weights, gradients[: length - 1], lr=0.07, weight_decay=0.3)[0]
        after = walk(weights, gradients[:length], lr=0.07, weight_decay=0.3)[0]
        assert (after - before).norm().item() == pytest.approx(0.07 * before.norm().item(), rel=1e-9)


def test_scale_of_the_gradients_does_not_matter():
    weights, gradients = problem([(6, 4)])
    scaled = [[1e3 * gradient for gradient in step] for step in gradients]
    one, two = (walk(weights, g, lr=0.1, weight_decay=0.0, eps=1e-14)[0] for g in (gradients, scaled))
    torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


def test_vectors_are_torchs_adam_without_decay():
    weights, gradients = problem([(5,), ()])
    results = walk(weights, gradients, lr=0.1, weight_decay=0.5)
    theirs = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = torch.optim.Adam(theirs, lr=0.1, betas=(0.9, 0.999), eps=1e-6)
    for step in gradients:
        for parameter, gradient in zip(theirs, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for one, two in zip(results, theirs, strict=True):
        torch.testing.assert_close(one, two.detach(), atol=1e-6, rtol=0)


def test_a_layer_of_zeros_moves_like_adam():
    (weight,) = walk([torch.zeros(2, 3)], [[torch.ones(2, 3)]], lr=0.1, weight_decay=0.0, eps=1e-12)
    torch.testing.assert_close(weight, torch.full((2, 3), -0.1), atol=1e-6, rtol=0)


def test_beta_zero_and_a_late_parameter():
    """Bias corrections count each parameter's own steps; a memory of 0 has none."""
    (weight,) = walk([WEIGHT], [[SLOPE], [SLOPE]], lr=0.1, weight_decay=0.1, beta1=0.0, beta2=0.0)
    expected = reference(WEIGHT, [SLOPE, SLOPE], 0.1, 0.1, beta1=0.0, beta2=0.0)
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0)
    early, late = torch.nn.Parameter(WEIGHT.clone()), torch.nn.Parameter(WEIGHT.clone())
    optimizer = LAMB([early, late], lr=0.1, weight_decay=0.1)
    early.grad = SLOPE.clone()
    optimizer.step()
    late.grad = SLOPE.clone()
    optimizer.step()
    torch.testing.assert_close(late.detach(), reference(WEIGHT, [SLOPE], 0.1, 0.1), atol=1e-6, rtol=0)
    torch.testing.assert_close(early.detach(), reference(WEIGHT, [SLOPE, SLOPE], 0.1, 0.1), atol=1e-6, rtol=0)


def test_mistakes_are_named():
    for options in ({"beta1": 1.0}, {"beta2": -0.1}, {"eps": -1.0}, {"lr": float("nan")}):
        with pytest.raises(RecipeError, match=next(iter(options))):
            LAMB([torch.nn.Parameter(torch.ones(2, 2))], **options)


OPTIMIZERS = {
    "lamb": lambda parameters: LAMB(parameters, lr=0.05, weight_decay=0.1),
    "lars": lambda parameters: LARS(parameters, lr=0.05, weight_decay=0.1),
    "lars_momentum": lambda parameters: LARS(parameters, lr=0.05, weight_decay=0.1, normalise="momentum"),
}


def three_steps(prepare):
    """Weights after three steps of each optimizer, by optimizer and parameter; `prepare` may shard the model."""
    found = {}
    for name, build in OPTIMIZERS.items():
        torch.manual_seed(0)
        # 5 and 3 rows do not divide by two ranks, and one row leaves a rank nothing.
        layers = [torch.nn.Linear(4, 5), torch.nn.Linear(5, 3), torch.nn.Linear(3, 1)]
        model = torch.nn.Sequential(*layers).double()
        prepare(model)
        optimizer = build(model.parameters())
        for step in range(3):
            inputs = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            model(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        for key, parameter in model.named_parameters():
            value = parameter.detach()
            found[f"{name}/{key}"] = value.full_tensor() if hasattr(value, "full_tensor") else value
    return found


def sharded(rank, folder):
    """One rank of two; rank 0 writes what comes out."""
    import torch.distributed as dist
    from safetensors.torch import save_file
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    found = three_steps(lambda model: fully_shard(model, mesh=mesh))
    if rank == 0:
        save_file(found, f"{folder}/result.safetensors")
    # Nobody leaves while another rank may still be talking to it.
    dist.barrier()
    dist.destroy_process_group()


def test_two_sharded_ranks_equal_one(two_ranks, tmp_path):
    result = two_ranks(__file__, tmp_path)
    for key, expected in three_steps(lambda model: None).items():
        torch.testing.assert_close(result[key], expected, atol=1e-12, rtol=0)


if __name__ == "__main__":
    sharded(int(sys.argv[1]), sys.argv[2])
