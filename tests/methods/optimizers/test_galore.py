"""GaLore against a plain reference in the orientation of the paper, the numbers of its sheet, and its promises."""

from __future__ import annotations

import copy

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.optimizers import AdamW, GaLore
from thalweg.methods.optimizers import low_rank as machinery


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positive(vectors):
    """Columns with their largest entry positive: signs of singular vectors are free, and ours are these."""
    return vectors * torch.tensor([column[column.abs().argmax()].sign() for column in vectors.T]).double()


def reference(weight, gradients, lr, decay, rank, gap, alpha, betas=(0.9, 0.95), eps=1e-8):
    """GaLore for one matrix as its page writes it: left for wide matrices, right for tall ones."""
    rows, columns = weight.shape
    first = second = 0.0
    for count, gradient in enumerate(gradients):
        if count % gap == 0:
            left, _, right = torch.linalg.svd(gradient, full_matrices=False)
            left, right = positive(left), positive(right.T).T
        low = gradient @ right[:rank].T if rows >= columns else left[:, :rank].T @ gradient
        first = betas[0] * first + (1 - betas[0]) * low
        second = betas[1] * second + (1 - betas[1]) * low**2
        t = count + 1
        normal = (first / (1 - betas[0] ** t)) / ((second / (1 - betas[1] ** t)).sqrt() + eps)
        back = normal @ right[:rank] if rows >= columns else left[:, :rank] @ normal
        weight = weight * (1 - lr * decay) - lr * alpha * back
    return weight


def run(weight, gradients, number=torch.float64, **options):
    parameter = torch.nn.Parameter(weight.to(number, copy=True))
    optimizer = GaLore([parameter], **options)
    for gradient in gradients:
        parameter.grad = gradient.to(number)
        optimizer.step()
    return parameter.detach(), optimizer


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
@pytest.mark.parametrize("gap", [1, 3])
def test_equals_the_reference(shape, gap):
    weight, gradients = random(*shape, seed=9), [random(*shape, seed=step) for step in range(7)]
    result, _ = run(weight, gradients, lr=0.05, weight_decay=0.3, rank=3, update_proj_gap=gap, alpha=0.5)
    expected = reference(weight, gradients, 0.05, 0.3, 3, gap, 0.5)
    torch.testing.assert_close(result, expected, atol=1e-9, rtol=0)


def test_worked_example_of_the_sheet():
    gradient = torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64)
    moved, optimizer = run(torch.zeros(2, 2), [gradient], lr=1.0, rank=1, alpha=0.25)
    torch.testing.assert_close(-moved, torch.full((2, 2), 0.176777, dtype=torch.float64), atol=1e-6, rtol=0)
    state = next(iter(optimizer.state.values()))
    assert state["projector"].abs().flatten().tolist() == pytest.approx([0.5**0.5, 0.5**0.5], abs=1e-12)
    assert (state["exp_avg"].abs() / 0.1).flatten().tolist() == pytest.approx([2.121320, 6.363961], abs=1e-6)
    back = (state["exp_avg"] / 0.1) @ state["projector"].T
    torch.testing.assert_close(back, torch.tensor([[1.5, 1.5], [4.5, 4.5]], dtype=torch.float64))


def test_updates_have_the_rank_of_the_subspace():
    weight, gradients = random(9, 7, seed=9), [random(9, 7, seed=step) for step in range(6)]
    before = weight
    for step in range(1, 7):
        after, _ = run(weight, gradients[:step], lr=0.1, weight_decay=0.0, rank=2, update_proj_gap=2)
        assert int(torch.linalg.matrix_rank(after - before, rtol=1e-9)) == 2
        before = after
    # Three subspaces follow each other: the weights do not stay low-rank.
    assert int(torch.linalg.matrix_rank(before - weight, rtol=1e-9)) == 6


def test_signs_of_singular_vectors_do_not_matter(monkeypatch):
    weight, gradients = random(6, 4, seed=9), [random(6, 4, seed=step) for step in range(4)]
    options = {"lr": 0.1, "rank": 2, "update_proj_gap": 2}
    straight, _ = run(weight, gradients, **options)
    svd = torch.linalg.svd

    def flipped(*args, **kwargs):
        left, values, right = svd(*args, **kwargs)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        return torch.return_types.linalg_svd((left * signs, values, right * signs[:, None]))

    monkeypatch.setattr(machinery.torch.linalg, "svd", flipped)
    other, _ = run(weight, gradients, **options)
    torch.testing.assert_close(straight, other, atol=1e-12, rtol=0)


def test_state_round_trip_around_a_refresh_is_bit_exact():
    """Taken in every phase of a subspace of three steps; what was taken goes on as if nothing had happened."""
    weight, gradients = random(8, 6).float(), [random(8, 6, seed=step).float() for step in range(8)]
    options = {"lr": 0.1, "rank": 2, "update_proj_gap": 3}
    straight, _ = run(weight, gradients, torch.float32, **options)
    for cut in range(1, 8):
        half, optimizer = run(weight, gradients[:cut], torch.float32, **options)
        parameter = torch.nn.Parameter(half.clone())
        resumed = GaLore([parameter], lr=1.0)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for gradient in gradients[cut:]:
            parameter.grad = gradient
            resumed.step()
        assert torch.equal(parameter, straight), cut


def test_state_is_as_small_as_promised():
    """2 m r + n r numbers of a matrix, tall or wide; vectors and embeddings have AdamW's two each."""
    parameters = [torch.nn.Parameter(torch.ones(40, 16)), torch.nn.Parameter(torch.ones(16, 40))]
    table, vector = torch.nn.Parameter(torch.ones(30, 4)), torch.nn.Parameter(torch.ones(5))
    groups = [{"params": parameters, "kind": "matrix"}, {"params": [table], "kind": "embedding"}]
    optimizer = GaLore([*groups, {"params": [vector], "kind": "vector"}], lr=0.1, rank=0.25)
    for parameter in (*parameters, table, vector):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()

    def numbers(parameter):
        return sum(v.numel() for k, v in optimizer.state[parameter].items() if k != "step")

    assert [numbers(parameter) for parameter in parameters] == [2 * 40 * 4 + 16 * 4] * 2
    assert (numbers(table), numbers(vector)) == (240, 10)


def test_others_get_adamw():
    vector, twin = (torch.nn.Parameter(random(5)) for _ in range(2))
    ours, theirs = GaLore([vector], lr=0.1, weight_decay=0.2), AdamW([twin], lr=0.1, weight_decay=0.2)
    for step in range(3):
        vector.grad, twin.grad = random(5, seed=step), random(5, seed=step)
        ours.step()
        theirs.step()
    assert torch.equal(vector, twin)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"rank": 0.0}, "rank"), ({"update_proj_gap": 0}, "update_proj_gap"), ({"alpha": -1.0}, "alpha")],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        GaLore([torch.nn.Parameter(torch.ones(2, 2))], **options)
