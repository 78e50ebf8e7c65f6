"""Magnitude pruning: the smallest of each matrix, or of all."""

from __future__ import annotations

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.pruning import Magnitude
from thalweg.models.compression import block_linears, check_kept


def weights_of(model):
    return {name: linear.weight.clone() for name, linear in block_linears(model).items()}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.77])
def test_each_matrix_loses_its_smallest(causal_model, name, sparsity):
    model = causal_model(name)
    before = weights_of(model)
    found = Magnitude(sparsity=sparsity).compress(model)
    after = weights_of(model)
    for layer, weight in before.items():
        count = int(sparsity * weight.numel() + 1e-6)
        assert int((after[layer] == 0).sum()) == count
        kept = after[layer] != 0
        assert torch.equal(after[layer][kept], weight[kept])
        assert count == 0 or weight[~kept].abs().max() < weight[kept].abs().min()
    # Every layer is told of, with what it came to exactly.
    told = [share for block in found["blocks"] for share in block["sparsity"].values()]
    assert told == [float((weight == 0).sum()) / weight.numel() for weight in after.values()]
    check_kept(model)


def test_no_sparsity_leaves_the_bits_alone(causal_model):
    for scope in ("layer", "global"):
        model = causal_model("llama")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        Magnitude(sparsity=0.0, scope=scope).compress(model)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_one_threshold_for_all_matrices(causal_model, name):
    model = causal_model(name)
    linears = list(block_linears(model).values())
    linears[0].weight.mul_(0.01)
    before = torch.cat([linear.weight.flatten() for linear in linears])
    found = Magnitude(sparsity=0.6, scope="global").compress(model)
    after = torch.cat([linear.weight.flatten() for linear in linears])
    assert int((after == 0).sum()) == int(0.6 * len(before) + 1e-6)
    assert before[after == 0].abs().max() < after[after != 0].abs().min()
    shares = [share for block in found["blocks"] for share in block["sparsity"].values()]
    # The matrix of small weights is emptied, the others make up for it.
    assert shares[0] == 1.0
    assert 0.1 < min(shares) < 0.6
    check_kept(model)


def test_a_pattern_holds_in_every_row(causal_model):
    model = causal_model("gpt2")
    before = weights_of(model)
    Magnitude(pattern="1:4").compress(model)
    for layer, weight in weights_of(model).items():
        pieces, old = weight.unflatten(1, (-1, 4)), before[layer].unflatten(1, (-1, 4))
        assert bool(((pieces != 0).sum(-1) == 1).all())
        torch.testing.assert_close(pieces.abs().sum(-1), old.abs().amax(-1))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_was_pruned_before_counts(causal_model, scope):
    model, once = causal_model("llama"), causal_model("llama")
    for share in (0.3, 0.7):
        Magnitude(sparsity=share, scope=scope).compress(model)
    Magnitude(sparsity=0.7, scope=scope).compress(once)
    assert all(torch.equal(one, weights_of(once)[name]) for name, one in weights_of(model).items())
    # And less than there is changes nothing.
    after = weights_of(model)
    Magnitude(sparsity=0.2, scope=scope).compress(model)
    assert all(torch.equal(one, after[name]) for name, one in weights_of(model).items())
    check_kept(model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsity": 1.5}, "sparsity"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"scope": "row"}, "scope"),
        ({"pattern": "4:2"}, "pattern"),
        ({"pattern": "2:4", "scope": "global"}, "scope"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(RecipeError) as caught:
        Magnitude(**options)
    assert said in caught.value.where
