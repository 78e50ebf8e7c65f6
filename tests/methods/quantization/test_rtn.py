"""Rounding to nearest."""

from __future__ import annotations

import pytest
import torch

from thalweg.arena.claims import four_bit_formats
from thalweg.methods.quantization import RTN
from thalweg.models.compression import block_linears
from thalweg.numerics.float_formats import format_of
from thalweg.numerics.number_formats import rounded


@pytest.mark.parametrize(
    ("options", "format", "group"),
    [
        ({"bits": 4, "group": 8}, format_of("int", 4), 8),
        ({"bits": 3, "group": 0, "symmetric": False}, format_of("int", 3, symmetric=False), 0),
        ({"format": "nvfp4"}, format_of("nvfp4"), 0),
    ],
)
def test_is_the_format_applied_to_every_weight(options, format, group, llama):
    model, before = llama(), llama()
    found = RTN(**options).compress(model)
    for linear, original in zip(block_linears(model).values(), block_linears(before).values(), strict=True):
        assert torch.equal(linear.weight, rounded(original.weight, format, group).values())
        error = (linear.weight - original.weight).square().sum() / original.weight.square().sum()
        layer = found["blocks"][int(linear.name.split(".")[2])]["linears"][linear.name.split(".", 3)[3]]
        assert layer["weight_error"] == pytest.approx(float(error))


def test_needs_no_calibration_and_takes_no_notice_of_it(llama, calibration):
    one, other = llama().eval(), llama().eval()
    RTN(bits=4, group=8).compress(one)
    RTN(bits=4, group=8).compress(other, calibration)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_scales_come_from_what_was_not_pruned(llama):
    """A group is fitted with zeros where weights were pruned, which no range ever leaves out."""
    model = llama()
    linear = block_linears(model)["model.layers.0.mlp.up_proj"]
    linear.weight[:, 0] = 100.0
    keep = torch.ones(linear.shape, dtype=torch.bool)
    keep[:, 0] = False
    linear.prune(keep)
    RTN(bits=4, group=8).compress(model)
    assert float(linear.fixed.quantized.scale.max()) < 1.0


def test_claim_is_judged_by_held_out_loss(monkeypatch, stand_in):
    start = stand_in(four_bit_formats)
    found = four_bit_formats.four_bit_formats()
    assert found == four_bit_formats.four_bit_formats()
    assert "MXFP4" in found.sentence
    assert found.numbers["squared error, int4"] < found.numbers["squared error, mxfp4"]
    # With losses in another order the claim does not hold.
    for order, holds in (("nvfp4 int4 mxfp4", True), ("mxfp4 int4 nvfp4", False), ("int4 mxfp4 nvfp4", False)):
        ranks = {name: 1.0 + 0.01 * place for place, name in enumerate(order.split())}
        names = iter(["start", "nvfp4", "int4", "mxfp4", "mxfp4_ceil"])
        monkeypatch.setattr(start, "losses", lambda model, names=names, ranks=ranks: ranks.get(next(names), 0.5))
        assert four_bit_formats.four_bit_formats().holds is holds
