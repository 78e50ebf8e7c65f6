"""What holds for rtn, gptq and foem alike: what they touch, what they keep, what they refuse and what they say."""

from __future__ import annotations

import json

import pytest
import torch

from thalweg import catalog
from thalweg.errors import ModelError, RecipeError
from thalweg.models.compression import block_linears, check_kept
from thalweg.numerics.float_formats import NAMES

METHODS = ("rtn", "gptq", "foem")
all_methods = pytest.mark.parametrize("name", METHODS)


def step(name, **options):
    return catalog.resolve(name)(**{"bits": 3, "group": 8} | options)


@all_methods
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_linears_of_blocks_are_quantized_and_nothing_else(name, kind, llama, gpt2, calibration):
    model = llama().eval() if kind == "llama" else gpt2()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = step(name).compress(model, calibration)
    linears = block_linears(model)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{linear}.weight" for linear in linears}
    for linear in linears.values():
        assert linear.fixed.quantized.elements.shape == linear.shape
        assert linear.fixed.quantized.elements.unique().numel() <= 8
        assert torch.equal(linear.weight, linear.fixed.quantized.values())
    check_kept(model)
    json.dumps(found, allow_nan=False)
    names = {"llama": ["model.layers.0", "model.layers.1"], "gpt2": ["transformer.h.0", "transformer.h.1"]}
    assert [block["name"] for block in found["blocks"]] == names[kind]
    for block in found["blocks"]:
        assert len(block["linears"]) == len(linears) / 2
        for layer in block["linears"].values():
            assert layer["format"] == "int3"
            assert layer["bits_per_weight"] == 3 + 32 / 8
            assert 0 < layer["weight_error"] < 0.2


@all_methods
def test_same_input_same_result_and_no_random_state(name, llama, calibration):
    one, other = llama().eval(), llama().eval()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    step(name).compress(one, calibration)
    assert torch.equal(torch.get_rng_state(), state)
    step(name).compress(other, calibration)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@all_methods
def test_pruned_weights_stay_zero(name, llama, calibration):
    model = llama().eval()
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for key, linear in block_linears(model).items():
        masks[key] = torch.rand(linear.shape, generator=generator) < 0.5
        linear.prune(masks[key])
    step(name, symmetric=False).compress(model, calibration)
    check_kept(model)
    for key, linear in block_linears(model).items():
        assert float(linear.weight[~masks[key]].abs().max()) == 0.0
        assert float(linear.weight[masks[key]].abs().max()) > 0.0


@all_methods
def test_pruning_may_come_later(name, llama, calibration):
    model = llama().eval()
    step(name).compress(model, calibration)
    for linear in block_linears(model).values():
        linear.prune(linear.weight.abs() > linear.weight.abs().median())
    check_kept(model)


@all_methods
def test_weights_are_quantized_once(name, llama, calibration):
    model = llama().eval()
    step(name).compress(model, calibration)
    with pytest.raises(ModelError, match="q_proj is quantized already, to int3"):
        step("rtn", bits=8).compress(model)
    with pytest.raises(ModelError, match="leave out one of the two steps"):
        step("gptq").compress(model, calibration)
    check_kept(model)


@all_methods
def test_a_group_that_does_not_divide_the_inputs_becomes_the_row(name, llama, calibration):
    model = llama().eval()
    found = step(name, group=16).compress(model, calibration)
    down = block_linears(model)["model.layers.0.mlp.down_proj"]
    assert down.fixed.quantized.scale.shape == (16, 1)
    note = "24 inputs are no multiple of the group of 16: one scale for a whole row"
    assert down.fixed.notes == found["blocks"][0]["linears"]["mlp.down_proj"]["notes"] == [note]
    assert found["blocks"][0]["linears"]["mlp.up_proj"]["notes"] == []


@all_methods
@pytest.mark.parametrize("format", [name for name in NAMES if name != "int"])
def test_formats_of_floats(name, format, llama, calibration):
    model = llama().eval()
    options = {} if format.startswith(("mx", "nv")) else {"group": 8}
    found = catalog.resolve(name)(format=format, **options).compress(model, calibration)
    check_kept(model)
    for linear in block_linears(model).values():
        assert linear.fixed.quantized.format.name == format
        assert linear.weight.isfinite().all()
    layer = found["blocks"][1]["linears"]["mlp.down_proj"]
    assert layer["groups"] == {"mx": 1, "nv": 2}.get(format[:2], 3)
    assert layer["weight_error"] < 0.04


@all_methods
def test_other_dtypes_are_computed_in_single_precision(name, llama, calibration):
    """In bfloat16 the weights are what single precision finds on scales that files hold, rounded."""
    model = llama().eval().to(torch.bfloat16)
    step(name).compress(model, calibration)
    check_kept(model)
    for linear in block_linears(model).values():
        assert linear.weight.dtype == torch.bfloat16
        assert linear.fixed.quantized.values().dtype == torch.float32
        assert linear.fixed.quantized.scale.dtype == torch.bfloat16


@all_methods
def test_weights_that_are_not_finite(name, llama, calibration):
    model = llama().eval()
    block_linears(model)["model.layers.0.self_attn.k_proj"].weight[0, 0] = torch.nan
    with pytest.raises(ModelError):
        step(name).compress(model, calibration)


@all_methods
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": 1}, "whole number"),
        ({"bits": 9}, "at most 8"),
        ({"group": -1}, "at least 0"),
        ({"format": "fp5"}, "one of int, fp8"),
        ({"format": "mxfp4", "bits": 8}, "mxfp4 has bits=4, not 8"),
        ({"format": "mxfp4", "group": 64}, "mxfp4 has group=32, not 64"),
        ({"format": "fp8", "symmetric": False}, "fp8 has symmetric=true, not false"),
        ({"search": 1}, "true or false"),
    ],
)
def test_wrong_options(name, options, says):
    with pytest.raises(RecipeError, match=says):
        catalog.resolve(name)(**options)


@all_methods
@pytest.mark.parametrize(
    "said",
    [
        {"format": "mxfp8", "bits": 8, "group": 32},
        {"format": "nvfp4", "group": 16},
        {"format": "fp6", "bits": 6, "group": 0},
    ],
    ids=lambda said: said["format"],
)
def test_options_that_a_format_agrees_with(name, said, llama, calibration):
    model = llama().eval()
    catalog.resolve(name)(**said).compress(model, calibration)
    assert {one.fixed.quantized.format.name for one in block_linears(model).values()} == {said["format"]}


@all_methods
def test_searched_ranges_lose_less_of_the_weights(name, llama, calibration):
    errors = []
    for search in (False, True):
        found = step(name, bits=2, group=0, search=search).compress(llama().eval(), calibration)
        errors.append(sum(one["weight_error"] for block in found["blocks"] for one in block["linears"].values()))
    assert errors[1] < 0.9 * errors[0]
