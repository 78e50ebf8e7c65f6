"""Fira against a plain reference of both its forms, the numbers of its sheet, the limiter, and no waiting."""

from __future__ import annotations

import math

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.optimizers import Fira, GaLore, fira
from thalweg.methods.optimizers.low_rank import stacks


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(weight, gradients, lr, rank, gap, alpha, gamma=1.01, betas=(0.9, 0.95), form="code", scaling="column"):
    """One tall matrix, without decay; the code's form works with uncorrected moments and a corrected step size."""
    first = second = 0.0
    before = None
    for count, gradient in enumerate(gradients):
        if count % gap == 0:
            subspace = torch.linalg.svd(gradient, full_matrices=False)[2][:rank].T
            subspace = subspace * subspace.gather(0, subspace.abs().argmax(0, keepdim=True)).sign()
        low, t = gradient @ subspace, count + 1
        first = betas[0] * first + (1 - betas[0]) * low
        second = betas[1] * second + (1 - betas[1]) * low**2
        normal, size = first / second.sqrt(), math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
        if form == "paper":
            normal, size = normal * size, 1.0
        over = {"dim": 1, "keepdim": True} if scaling == "column" else {}
        scaled = normal.norm(**over) / (low.norm(**over) + 1e-8)
        outside = alpha if form == "code" else 1.0
        residual = (gradient - outside * low @ subspace.T) * scaled
        if before is not None and residual.norm() > gamma * before:
            residual = residual * gamma * before / residual.norm()
        before = residual.norm()
        weight = weight - lr * size * (alpha * normal @ subspace.T + residual)
    return weight


def run(weight, gradients, kind=Fira, **options):
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = kind([parameter], weight_decay=0.0, **options)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach(), optimizer


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("scaling", ["column", "matrix"])
def test_equals_the_reference_tall_and_wide(form, scaling):
    weight = random(8, 5, seed=9)
    # Growing gradients, so that the limiter acts in some steps and not in others.
    gradients = [random(8, 5, seed=step) * (1.5 if step % 3 else 0.5) for step in range(8)]
    told = {"lr": 0.05, "rank": 2, "update_proj_gap": 3, "alpha": 0.25, "eps": 0.0}
    result, _ = run(weight, gradients, residual=form, scaling=scaling, **told)
    expected = reference(weight, gradients, 0.05, 2, 3, 0.25, form=form, scaling=scaling)
    torch.testing.assert_close(result, expected, atol=1e-10, rtol=0)
    turned, _ = run(weight.T, [gradient.T for gradient in gradients], residual=form, scaling=scaling, **told)
    torch.testing.assert_close(turned.T, expected, atol=1e-10, rtol=0)


def test_worked_example_of_the_sheet():
    """Betas 0.9 and 0.999; with alpha = 1 the residual alone is the update less GaLore's."""
    gradient = torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64)
    told = {"lr": 1.0, "rank": 1, "beta2": 0.999, "eps": 0.0}
    moved, optimizer = run(torch.zeros(2, 2).double(), [gradient], alpha=0.25, **told)
    expected = torch.tensor([[1.414192, 0.0], [0.628536, 0.785670]], dtype=torch.float64)
    # The sheet's numbers have eps = 1e-6 inside the uncorrected root, a relative 1.5e-5 at most.
    torch.testing.assert_close(-moved, expected, atol=5e-5, rtol=0)
    full, _ = run(torch.zeros(2, 2).double(), [gradient], alpha=1.0, **told)
    galore, _ = run(torch.zeros(2, 2).double(), [gradient], GaLore, alpha=1.0, **told)
    residual = torch.tensor([[0.707096, -0.707096], [-0.078567, 0.078567]], dtype=torch.float64)
    torch.testing.assert_close(galore - full, residual, atol=5e-5, rtol=0)
    assert int(torch.linalg.matrix_rank(moved)) == 2
    norm = next(iter(optimizer.state.values()))["residual_norm"].item()
    # phi before correction: 1.490690 and 0.496902 on G - 0.25 P R = [[2.625, -0.375], [2.875, 3.875]].
    rows = torch.tensor([[2.625, -0.375], [2.875, 3.875]]) * torch.tensor([[1.490690], [0.496902]])
    assert norm == pytest.approx(rows.norm().item(), rel=2e-5)


def test_full_rank_is_galore():
    weight, gradients = random(7, 4, seed=9), [random(7, 4, seed=step) for step in range(5)]
    told = {"lr": 0.05, "rank": 4, "update_proj_gap": 2, "alpha": 1.0}
    ours, _ = run(weight, gradients, **told)
    theirs, _ = run(weight, gradients, GaLore, **told)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_an_inner_optimizer_that_only_scales_gives_plain_gradient_descent(monkeypatch):
    """N = c R: phi = c, and with alpha = 1 the update is c G, all of it."""
    monkeypatch.setattr(fira.Stack, "adam", lambda stack, low: 3.0 * low)
    weight, gradient = random(7, 4, seed=9), random(7, 4)
    moved, _ = run(weight, [gradient], lr=0.1, rank=2, alpha=1.0)
    torch.testing.assert_close(moved, weight - 0.1 * 3.0 * gradient, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("residual", "alpha", "orthogonal"), [("paper", 0.25, True), ("code", 1.0, True), ("code", 0.25, False)]
)
def test_residual_is_orthogonal_where_it_should_be(monkeypatch, residual, alpha, orthogonal):
    seen = []
    row_norms = fira._row_norms
    monkeypatch.setattr(fira, "_row_norms", lambda x: seen.append(x.clone()) or row_norms(x))
    _, optimizer = run(random(7, 4, seed=9), [random(7, 4)], lr=0.1, rank=2, alpha=alpha, residual=residual)
    (rest,) = [x for x in seen if x.shape == (1, 7, 4)]
    subspace = next(iter(optimizer.state.values()))["projector"]
    inside = (rest[0] @ subspace).abs().max().item()
    assert (inside < 1e-12) == orthogonal


def limited_norms(norms, **options):
    """What the limiter makes of residuals with these norms, one step after the other."""
    parameter = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    optimizer = Fira([parameter], lr=0.1, residual="paper", **options)
    result = []
    for norm in norms:
        (stack,) = stacks(optimizer, optimizer.param_groups[0], [parameter])
        result.append(norm * fira._limit(stack, torch.full((1, 1, 1), norm, dtype=torch.float64)).item())
    return result


def test_limiter_of_the_sheet():
    assert limited_norms([2.0, 3.0]) == pytest.approx([2.0, 2.02], abs=1e-12)
    assert 3.0 / limited_norms([2.0, 3.0])[1] == pytest.approx(1.485149, abs=1e-6)
    # The norm after limiting is what is remembered, falling is free, and growth begins from where it fell to.
    assert limited_norms([2.0, 3.0, 3.0, 1.0, 2.0]) == pytest.approx([2.0, 2.02, 2.0402, 1.0, 1.01], abs=1e-12)
    assert limited_norms([2.0, 3.0], gamma=1e6) == pytest.approx([2.0, 3.0], abs=1e-12)


def test_a_gradient_of_zeros_does_not_silence_the_residual():
    assert limited_norms([2.0, 0.0, 3.0]) == pytest.approx([2.0, 0.0, 3.0], abs=1e-12)


def test_dct_projector_keeps_indices_instead_of_vectors():
    gradients = [random(8, 6, seed=step) for step in range(5)]
    result, optimizer = run(random(8, 6, seed=9), gradients, lr=0.05, rank=3, update_proj_gap=2, projector="dct")
    state = next(iter(optimizer.state.values()))
    assert set(state) == {"step", "indices", "exp_avg", "exp_avg_sq", "residual_norm"}
    assert state["indices"].shape == (1, 3)
    assert state["indices"].dtype == torch.int64
    other, _ = run(random(8, 6, seed=9), gradients, lr=0.05, rank=3, update_proj_gap=2)
    assert result.isfinite().all()
    assert not torch.allclose(result, other)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"gamma": 0.9}, "gamma"), ({"residual": "both"}, "residual"), ({"scaling": "row"}, "scaling")],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        Fira([torch.nn.Parameter(torch.ones(2, 2))], **options)
