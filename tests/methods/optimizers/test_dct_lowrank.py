"""DCT-AdamW against a plain reference, conservation of what is left out, and its limits."""

from __future__ import annotations

import copy

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.optimizers import DCTAdamW
from thalweg.methods.optimizers.dct_basis import basis_rows
from thalweg.methods.optimizers.error_memory import recall


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(weight, gradients, lr, decay, rank, gap=1, norm=1, rotate=True, feedback=False, betas=(0.9, 0.95)):
    """One tall matrix as the paper's equations have it, with the rotation as a product of the chosen columns."""
    basis = basis_rows("dct", weight.shape[1], torch.float64, torch.device("cpu")).T
    first = second = error = torch.zeros(())
    indices = None
    for count, gradient in enumerate(gradients):
        weight, whole, t = weight * (1 - lr * decay), gradient + error, count + 1
        if count % gap == 0:
            previous, indices = indices, (whole @ basis).norm(p=norm, dim=0).topk(rank).indices
            if rotate and previous is not None:
                turn = basis[:, previous].T @ basis[:, indices]
                first, second = first @ turn, (second @ turn).abs()
        low = whole @ basis[:, indices]
        error = whole - low @ basis[:, indices].T if feedback else error
        if not rotate:
            low = low[:, indices.argsort()]  # without rotation slots matter: ours are in ascending order
            indices = indices.sort().values
        first, second = betas[0] * first + (1 - betas[0]) * low, betas[1] * second + (1 - betas[1]) * low**2
        normal = (first / (1 - betas[0] ** t)) / ((second / (1 - betas[1] ** t)).sqrt() + 1e-8)
        weight = weight - lr * normal @ basis[:, indices].T
    return weight


def run(weight, gradients, number=torch.float64, **options):
    parameter = torch.nn.Parameter(weight.to(number, copy=True))
    optimizer = DCTAdamW([parameter], **options)
    for gradient in gradients:
        parameter.grad = gradient.to(number)
        optimizer.step()
    return parameter.detach(), optimizer


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize(("gap", "norm"), [(1, 1), (3, 1), (1, 2)])
def test_equals_the_reference_tall_and_wide(gap, norm, rotate, feedback):
    weight, gradients = random(8, 6, seed=99), [random(8, 6, seed=step) for step in range(8)]
    told = {"rank": 3, "update_proj_gap": gap, "ell_norm": norm, "rotate": rotate}
    told |= {"lr": 0.05, "weight_decay": 0.2, "error_feedback": "exact" if feedback else "none"}
    expected = reference(weight, gradients, 0.05, 0.2, 3, gap, norm, rotate, feedback)
    for transform in ("matmul", "fft"):
        result, _ = run(weight, gradients, transform=transform, **told)
        torch.testing.assert_close(result, expected, atol=1e-9, rtol=0)
    turned, _ = run(weight.T, [gradient.T for gradient in gradients], **told)
    torch.testing.assert_close(turned.T, expected, atol=1e-9, rtol=0)


def test_full_rank_is_adam_in_the_rotated_basis():
    weight, gradients = random(7, 5, seed=99), [random(7, 5, seed=step) for step in range(5)]
    result, optimizer = run(weight, gradients, lr=0.05, weight_decay=0.0, rank=5, error_feedback="exact")
    basis = basis_rows("dct", 5, torch.float64, torch.device("cpu")).T
    rotated = torch.nn.Parameter(weight @ basis)
    adam = torch.optim.Adam([rotated], lr=0.05, betas=(0.9, 0.95), eps=1e-8)
    for gradient in gradients:
        rotated.grad = gradient @ basis
        adam.step()
    torch.testing.assert_close(result, rotated.detach() @ basis.T, atol=1e-10, rtol=0)
    assert next(iter(optimizer.state.values()))["error"].abs().max().item() < 1e-12


@pytest.mark.parametrize(("feedback", "tolerance"), [("exact", 1e-12), ("8bit", 0.02), ("4bit", 0.3)])
def test_nothing_is_lost(feedback, tolerance):
    """All that was sent and what is still remembered add up to all gradients, to the rounding of the memory."""
    shape, steps = (8, 6), 6
    parameter = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = DCTAdamW([parameter], lr=0.1, weight_decay=0.0, rank=2, error_feedback=feedback)
    sent = total = torch.zeros(shape, dtype=torch.float64)
    for step in range(steps):
        parameter.grad = random(*shape, seed=step)
        total = total + parameter.grad
        remembered = recall(optimizer, [parameter], feedback)[0].clone()
        optimizer.step()
        basis = basis_rows("dct", 6, torch.float64, torch.device("cpu"))
        chosen = basis[optimizer.state[parameter]["indices"][0]]
        sent = sent + (parameter.grad + remembered) @ chosen.T @ chosen
    left = recall(optimizer, [parameter], feedback)[0]
    assert (sent + left - total).abs().max().item() < tolerance * total.abs().max().item()
    assert left.abs().max().item() > 0.1


def test_a_new_index_begins_at_zero():
    """Two steps that see disjoint columns: the second one's moments are as in a first step."""
    basis = basis_rows("dct", 4, torch.float64, torch.device("cpu"))
    one, two = random(6, 1) @ basis[:1], random(6, 1, seed=1) @ basis[3:]
    _, optimizer = run(torch.zeros(6, 4), [one, two], lr=0.1, rank=1)
    state = next(iter(optimizer.state.values()))
    assert state["indices"].tolist() == [[3]]
    torch.testing.assert_close(state["exp_avg"], 0.1 * random(6, 1, seed=1), atol=1e-12, rtol=0)
    _, optimizer = run(torch.zeros(6, 4), [one, two], lr=0.1, rank=1, rotate=False)
    kept = next(iter(optimizer.state.values()))["exp_avg"]
    torch.testing.assert_close(kept, 0.09 * random(6, 1) + 0.1 * random(6, 1, seed=1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("feedback", ["none", "exact", "8bit", "4bit"])
def test_state_round_trip_around_a_refresh_is_bit_exact(feedback):
    weight, gradients = random(8, 6).float(), [random(8, 6, seed=step).float() for step in range(8)]
    options = {"lr": 0.1, "rank": 2, "update_proj_gap": 3, "error_feedback": feedback}
    straight, _ = run(weight, gradients, torch.float32, **options)
    for cut in range(1, 8):
        half, optimizer = run(weight, gradients[:cut], torch.float32, **options)
        parameter = torch.nn.Parameter(half.clone())
        resumed = DCTAdamW([parameter], lr=1.0)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for gradient in gradients[cut:]:
            parameter.grad = gradient
            resumed.step()
        assert torch.equal(parameter, straight), cut


@pytest.mark.parametrize(
    ("feedback", "extra"), [("none", 0), ("exact", 4 * 640), ("8bit", 640 + 8 * 40), ("4bit", 320 + 8 * 40)]
)
def test_state_is_as_small_as_promised(feedback, extra):
    parameter = torch.nn.Parameter(torch.ones(40, 16))
    optimizer = DCTAdamW([parameter], lr=0.1, error_feedback=feedback)
    parameter.grad = random(40, 16).float()
    optimizer.step()
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    assert sum(value.nbytes for value in tensors) == 4 * 2 * 40 * 4 + 8 * 4 + extra


@pytest.mark.parametrize(
    ("options", "said"),
    [({"ell_norm": 3}, "ell_norm"), ({"error_feedback": "2bit"}, "error_feedback"), ({"basis": "haar"}, "basis")],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        DCTAdamW([torch.nn.Parameter(torch.ones(2, 2))], **options)
