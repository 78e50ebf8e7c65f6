"""Linear layers in one form: what is decided about a weight stays decided."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from thalweg.models.linears import Linear, linears_of
from thalweg.numerics.number_formats import Format, rounded


def layer(kind="linear", dtype=torch.float32, rows=4, columns=8):
    module = Conv1D(rows, columns) if kind == "conv1d" else nn.Linear(columns, rows)
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    linear = Linear("one", module.to(dtype))
    linear.weight.copy_(values)
    return linear


def lowest_half(weight):
    return weight.abs() > weight.abs().median(1, keepdim=True).values


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_weights_are_out_by_in_and_the_layers_own(kind):
    linear = layer(kind)
    inputs = torch.randn(5, 8)
    assert linear.shape == tuple(linear.weight.shape) == (4, 8)
    torch.testing.assert_close(linear.module(inputs), inputs @ linear.weight.T + linear.bias)
    linear.weight[1].zero_()
    torch.testing.assert_close(linear.module(inputs)[:, 1], linear.bias[1].expand(5))
    assert not linear.weight.requires_grad
    assert linear.module.weight.requires_grad


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_was_pruned_stays_pruned(kind, dtype):
    linear = layer(kind, dtype)
    before = linear.weight.clone()
    first, second = lowest_half(before.float()), torch.rand(4, 8, generator=torch.Generator().manual_seed(1)) > 0.3
    linear.prune(first)
    linear.prune(second, torch.full((4, 8), 3.0))
    kept = first & second
    assert 0 < int(kept.sum()) < int(first.sum())
    assert torch.equal(linear.fixed.mask, kept)
    assert torch.equal(linear.weight, kept.to(dtype) * 3.0)
    assert linear.weight.dtype == linear.module.weight.dtype == dtype
    assert linear.broken() is None


def test_the_mask_is_a_copy():
    linear, keep = layer(), torch.ones(4, 8, dtype=torch.bool)
    linear.prune(keep)
    keep.zero_()
    assert bool(linear.fixed.mask.all())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pruning_a_quantized_weight_leaves_the_others_on_their_grid(symmetric, dtype):
    linear = layer("conv1d", dtype)
    quantized = rounded(linear.weight.float(), Format("int4", 4, symmetric), 4)
    linear.quantize(quantized)
    assert torch.equal(linear.weight, quantized.values().to(dtype))
    keep = lowest_half(linear.weight.float())
    linear.prune(keep)
    assert torch.equal(linear.weight, quantized.values().to(dtype) * keep)
    assert torch.equal(linear.fixed.quantized.values() != 0, (quantized.values() != 0) & keep)
    assert linear.broken() is None


def test_what_is_undone_is_found():
    linear = layer()
    linear.prune(lowest_half(linear.weight))
    linear.weight[~linear.fixed.mask] = 1e-6
    assert "pruned" in linear.broken()
    linear = layer()
    linear.quantize(rounded(linear.weight, Format("int4", 4), 0))
    linear.weight[0, 0] += 1e-3
    assert "grid" in linear.broken()


def test_what_is_fixed_goes_with_a_copy_of_the_model_and_into_no_state_dict():
    model = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), Conv1D(3, 4))
    linears = linears_of(model)
    assert list(linears) == ["0", "2"]
    names = set(model.state_dict())
    linears["0"].prune(lowest_half(linears["0"].weight))
    linears["0"].fixed.notes.append("half")
    other = linears_of(copy.deepcopy(model))["0"]
    assert torch.equal(other.fixed.mask, linears["0"].fixed.mask)
    assert other.fixed.notes == ["half"]
    other.fixed.mask.zero_()
    assert bool(linears["0"].fixed.mask.any())
    assert set(model.state_dict()) == names
    assert linears_of(model)["0"].fixed is linears["0"].fixed


def test_weights_that_are_not_finite_are_told_by_name():
    from thalweg.errors import ModelError

    linear = layer()
    linear.check_finite("model.layers.3")
    linear.weight[2, 1] = float("inf")
    with pytest.raises(ModelError, match=r"model\.layers\.3\.one"):
        linear.check_finite("model.layers.3")
