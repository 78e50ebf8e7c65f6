"""SparseGPT against the sheet, against a textbook elimination, and among other steps."""

from __future__ import annotations

import pytest
import torch

from thalweg.errors import ModelError, RecipeError
from thalweg.methods.pruning import Magnitude, SparseGPT, Wanda
from thalweg.methods.pruning.masks import Target, target
from thalweg.methods.pruning.refit import refit
from thalweg.methods.pruning.sparsegpt import solve
from thalweg.methods.pruning.wanda import kept as by_wanda
from thalweg.models.compression import block_linears, check_kept
from thalweg.models.input_statistics import Hessian
from thalweg.models.walker import walk
from thalweg.numerics.hessian_factor import hessian_factor
from thalweg.numerics.number_formats import Format, rounded

CALIBRATION = torch.randint(2, 61, (6, 12), generator=torch.Generator().manual_seed(0))


def weights_of(model):
    return {name: linear.weight.clone() for name, linear in block_linears(model).items()}


def lost(changed, weight, hessian):
    """d^T H d of every row."""
    return (((changed - weight) @ hessian) * (changed - weight)).sum(1)


def eliminated(weight, hessian, sparsity, pattern, columns):
    """The same by the book, in float64: every inverse anew, one row and one weight at a time."""
    weight, (rows, width) = weight.clone(), weight.shape
    inverses = [torch.linalg.inv(hessian[first:, first:]) for first in range(width)]
    mask = torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, width, columns):
        stop = min(start + columns, width)
        if pattern is None:
            costs = sorted(
                (float(weight[row, column]) ** 2 / float(inverses[column][0, 0]), row, column)
                for row in range(rows)
                for column in range(start, stop)
            )
            for _, row, column in costs[: round(sparsity * rows * (stop - start))]:
                mask[row, column] = False
        for column in range(start, stop):
            if pattern is not None and column % pattern[1] == 0:
                for row in range(rows):
                    costs = sorted(
                        (float(weight[row, other]) ** 2 / float(inverses[other][0, 0]), other)
                        for other in range(column, column + pattern[1])
                    )
                    for _, other in costs[: pattern[1] - pattern[0]]:
                        mask[row, other] = False
            inverse = inverses[column]
            for row in range(rows):
                if not mask[row, column]:
                    weight[row, column:] -= weight[row, column] / inverse[0, 0] * inverse[0]
    return mask, weight * mask


def test_the_numbers_of_the_sheet(sheet):
    factor = hessian_factor(sheet.hessian, 0.01)
    scores = sheet.weight.square() * factor.cost
    expected = [0.9474, 5.4431, 0.2796, 4.5296, 3.7897, 0.4899, 2.5167, 0.0708]
    assert scores.flatten().tolist() == pytest.approx(expected, abs=5e-5)
    mask, weight = solve(sheet.weight, factor, target(0.5, "2:4", "sparsegpt"))
    assert mask.int().tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert weight.flatten().tolist() == pytest.approx([0, -1.0155, 0, 1.2565, 1, 0, -0.6298, 0], abs=5e-5)
    assert lost(weight, sheet.weight, sheet.damped).tolist() == pytest.approx([1.1506, 0.8022], abs=5e-5)
    # Better than no update is promised for no single row: here the second is worse.
    assert lost(sheet.weight * mask, sheet.weight, sheet.damped).tolist() == pytest.approx([2.6025, 0.7378], abs=1e-4)


def test_one_weight_is_optimal_brain_surgery(random_layer):
    weight, hessian = random_layer(1, 8)
    inverse = torch.linalg.inv(hessian)
    factor = hessian_factor(hessian, 0.0)
    # The first column of all, which no frozen one stands before: make it the cheapest.
    weight[0, 0] = 1e-3
    mask, found = solve(weight, factor, Target(1 / 8))
    assert mask.tolist() == [[False] + [True] * 7]
    torch.testing.assert_close(found, weight - weight[0, 0] / inverse[0, 0] * inverse[0])
    cost = 0.5 * float(lost(found, weight, hessian))
    assert cost == pytest.approx(float(weight[0, 0] ** 2 / (2 * inverse[0, 0])), rel=1e-9)


@pytest.mark.parametrize(
    ("pattern", "columns"), [(None, 7), (None, 8), (None, 24), ((2, 4), 8), ((1, 4), 24), ((4, 8), 8)]
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_textbooks_elimination(random_layer, pattern, columns, seed):
    weight, hessian = random_layer(seed=seed)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    by_book = eliminated(weight, damped, 0.5, pattern, columns)
    text = "unstructured" if pattern is None else "{}:{}".format(*pattern)
    wanted = target(0.5, text, "sparsegpt")
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        mask, found = solve(weight.to(dtype), hessian_factor(hessian.to(dtype)), wanted, columns)
        assert torch.equal(mask, by_book[0])
        assert (found - by_book[1]).abs().max() < tolerance * weight.abs().max()


def test_a_refit_is_better_and_the_mask_alone_worse(random_layer):
    better = []
    for seed in range(5):
        weight, hessian = random_layer(seed=seed)
        factor = hessian_factor(hessian, 0.0)
        mask, found = solve(weight, factor, Target(0.5), 8)
        best, ours, plain = (lost(one, weight, hessian) for one in (refit(weight, mask, hessian), found, weight * mask))
        assert bool((best <= ours * (1 + 1e-9)).all())
        assert bool((best <= plain * (1 + 1e-9)).all())
        better.append(float(ours.sum() / plain.sum()))
    assert max(better) < 0.8


def test_with_inputs_that_do_not_go_together_it_is_wanda(random_layer, linear_of):
    weight, _ = random_layer()
    scales = torch.linspace(0.1, 3.0, 24, dtype=torch.float64)
    mask, found = solve(weight, hessian_factor(torch.diag(scales), 0.0), Target(0.5, 2, 4))
    expected = by_wanda(linear_of(weight), scales, Target(0.5, 2, 4))
    assert torch.equal(mask, expected)
    torch.testing.assert_close(found, weight * expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_blocks_of_columns_are_lazy_only(random_layer, pattern):
    """Where they do not decide on the mask, the result is the same for any number."""
    weight, hessian = random_layer()
    factor = hessian_factor(hessian)
    keep = torch.rand(16, 24, generator=torch.Generator().manual_seed(0)) > 0.5
    for columns in (4, 8, 16):
        if pattern == "2:4":
            one, other = (solve(weight, factor, target(0.5, pattern, ""), many) for many in (columns, 24))
        else:
            one, other = (solve(weight * keep, factor, Target(0.0), many, keep) for many in (columns, 24))
        assert torch.equal(one[0], other[0])
        torch.testing.assert_close(one[1], other[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.61])
@pytest.mark.parametrize("columns", [5, 24, 128])
def test_counts_are_exact(random_layer, sparsity, columns):
    weight, hessian = random_layer()
    mask, found = solve(weight, hessian_factor(hessian), Target(sparsity), columns)
    assert int((~mask).sum()) == int((found == 0).sum()) == int(sparsity * weight.numel() + 1e-6)
    if not sparsity:
        assert torch.equal(found, weight)


def test_inputs_that_are_always_zero_go_first_and_change_nothing(random_layer):
    weight, hessian = random_layer()
    hessian[5], hessian[:, 5] = 0, 0
    weight[:, 5] = 100.0
    alone = [column for column in range(24) if column != 5]
    factor = hessian_factor(hessian, 0.01)
    mask, found = solve(weight, factor, Target(1 / 24))
    assert not mask[:, 5].any()
    assert torch.equal(found[:, alone], weight[:, alone])
    mask, found = solve(weight, factor, Target(0.0))
    assert torch.equal(found, weight)


def test_no_sparsity_leaves_the_models_answers(causal_model):
    model = causal_model("gpt2")
    before = weights_of(model)
    SparseGPT(sparsity=0.0).compress(model, CALIBRATION)
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(model).items())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_layer_of_a_model_is_solved_with_its_own_hessian(causal_model, name):
    model = causal_model(name)
    expected = {}
    for block in walk(causal_model(name), CALIBRATION):
        for inner, linear in block.linears.items():
            hessian = Hessian()
            block.observe({inner: hessian})
            found = solve(linear.weight, hessian_factor(hessian.value), Target(0.5))
            expected[f"{block.name}.{inner}"] = (linear, found)
        for inner, linear in block.linears.items():
            linear.weight.copy_(expected[f"{block.name}.{inner}"][1][1])
    found = SparseGPT(sparsity=0.5).compress(model, CALIBRATION)
    for layer, weight in weights_of(model).items():
        torch.testing.assert_close(weight, expected[layer][1][1], rtol=1e-4, atol=1e-4)
        assert int((weight == 0).sum()) == weight.numel() // 2
    assert [set(block["damping"].values()) for block in found["blocks"]] == [{0.01}] * 2
    check_kept(model)


def test_what_was_pruned_before_stays_counts_and_is_made_up_for(causal_model):
    model, masked = causal_model("llama"), causal_model("llama")
    for one in (model, masked):
        Magnitude(sparsity=0.4).compress(one)
    before = weights_of(model)
    SparseGPT(sparsity=0.6, columns=8).compress(model, CALIBRATION)
    check_kept(model)
    for layer, weight in weights_of(model).items():
        assert bool((weight[before[layer] == 0] == 0).all())
        assert int((weight == 0).sum()) == int(0.6 * weight.numel() + 1e-6)
        assert not torch.equal(weight[weight != 0], before[layer][weight != 0])


def test_quantized_weights_are_not_moved_off_their_grid(causal_model):
    model = causal_model("llama")
    one = block_linears(model)["model.layers.0.mlp.down_proj"]
    one.quantize(rounded(one.weight, Format("int4", 4), 8))
    before = weights_of(model)
    with pytest.raises(ModelError, match="off their grid") as caught:
        SparseGPT().compress(model, CALIBRATION)
    assert "before the quantizer" in caught.value.fix
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(model).items())
    Wanda().compress(model, CALIBRATION)
    check_kept(model)


def test_inputs_that_overflow_are_a_model_error(causal_model):
    model = causal_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(1e19)
        model.model.layers[0].mlp.gate_proj.weight.abs_()
    with pytest.raises(ModelError, match=r"cannot be used|not finite"):
        SparseGPT().compress(model, CALIBRATION)


def test_a_few_tokens_are_enough_for_a_result(causal_model):
    model = causal_model("llama")
    found = SparseGPT(damping=0.0).compress(model, CALIBRATION[:1, :3])
    assert max(max(block["damping"].values()) for block in found["blocks"]) > 0
    notes = {note for linear in block_linears(model).values() for note in linear.fixed.notes}
    assert notes
    assert all(note.startswith("sparsegpt: the Hessian is singular: damping raised from 0 to ") for note in notes)
    assert all(weight.isfinite().all() for weight in weights_of(model).values())


def test_wrong_options_are_refused():
    for options in ({"damping": -1.0}, {"columns": 0}, {"pattern": "2:4", "columns": 6}, {"pattern": "x"}):
        with pytest.raises(RecipeError):
            SparseGPT(**options)
