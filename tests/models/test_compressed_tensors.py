"""What is written packed is read by transformers as the model that it was, in the bytes that were predicted."""

from __future__ import annotations

import importlib.util
import json
import math
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig

from thalweg.errors import ModelError
from thalweg.models import decompression
from thalweg.models.compressed_layouts import Layout, layouts
from thalweg.models.compressed_tensors import save_compressed, stored_bytes
from thalweg.models.compression import block_linears
from thalweg.models.folder import load, save
from thalweg.models.linears import linears_of
from thalweg.numerics.float_formats import format_of
from thalweg.numerics.number_formats import Format, Quantized, rounded

pytest.importorskip("compressed_tensors")

SIZES = {"vocab_size": 37, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"vocab_size": 37, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 32}
TOKENS = torch.randint(0, 37, (2, 9), generator=torch.Generator().manual_seed(1))


def whole(bits, symmetric=True):
    return Format(f"int{bits}" if symmetric else f"uint{bits}", bits, symmetric)


@pytest.fixture
def made(tmp_path):
    """Makes models as `load` gives them, in a type of their own."""

    def make(dtype=torch.float32, config=None, tied=False):
        torch.manual_seed(0)
        said = config or LlamaConfig(**SIZES, num_key_value_heads=2, mlp_bias=True, tie_word_embeddings=tied)
        save(AutoModelForCausalLM.from_config(said), None, tmp_path / "original")
        return load(tmp_path / "original", dtype)[0]

    return make


def quantize(model, format, group=0, only="", stored=True):
    """Round the linear layers with this in their names; `stored`: with scales of the model's type."""
    for name, linear in block_linears(model).items():
        if only in name and linear.fixed.quantized is None:
            given = linear.weight.float()
            found = rounded(given, format, group)
            if stored:
                found = on_scale(given, found, found.scale.to(linear.weight.dtype).float())
            linear.quantize(found)


def on_scale(weight, found, scale):
    """Rounded once more, to a grid with these scales."""
    columns = scale[:, found.group_of]
    elements = weight / columns if found.zero is None else weight / columns + found.zero[:, found.group_of]
    return replace(found, scale=scale, elements=found.format.nearest(elements))


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def read(folder, **options):
    """As anybody reads it."""
    with redirect_stderr(StringIO()):
        model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        logits(model)  # a model with several layouts stays packed until then
    return model


def same_weights(one, other):
    theirs = {name: linear.weight for name, linear in linears_of(other).items()}
    return all(torch.equal(linear.weight, theirs[name]) for name, linear in linears_of(one).items())


def tensors_of(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


# -- one layout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("symmetric", "group"), [(True, 32), (False, 0)])
def test_integers(made, tmp_path, bits, symmetric, group, dtype):
    model = made(dtype)
    quantize(model, whole(bits, symmetric), group)
    told = save_compressed(model, None, tmp_path / "out")
    assert told["layout"] == "compressed-tensors"
    assert sum(told["formats"].values()) == 14
    assert told["plain"] == {}
    assert told["largest_change"] == 0
    assert told["weight_bytes"] == stored_bytes(model) == (tmp_path / "out" / "model.safetensors").stat().st_size
    other = read(tmp_path / "out")
    assert other.dtype == dtype
    assert torch.equal(logits(other), logits(model))
    assert same_weights(model, other)
    packed = tensors_of(tmp_path / "out")["model.layers.1.mlp.up_proj.weight_packed"]
    assert packed.shape == (96, math.ceil(64 * bits / 32))


def test_words_are_as_the_format_says(made, tmp_path):
    """Read without the library: 8 words of 4 bits in an int32, the first one lowest, 8 added to each."""
    model = made()
    quantize(model, whole(4, symmetric=False), 32)
    save_compressed(model, None, tmp_path / "out")
    name = "model.layers.0.self_attn.k_proj"
    stored = tensors_of(tmp_path / "out")
    shifts = torch.arange(0, 32, 4)
    words = (stored[f"{name}.weight_packed"].long()[..., None] >> shifts & 15).flatten(1)
    zeros = (stored[f"{name}.weight_zero_point"].long()[:, None] >> shifts[:, None] & 15).flatten(0, 1)
    quantized = block_linears(model)[name].fixed.quantized
    assert torch.equal(words, quantized.elements.long())
    assert torch.equal(zeros, quantized.zero.long())
    values = (words - zeros.repeat_interleave(32, 1)) * stored[f"{name}.weight_scale"].repeat_interleave(32, 1)
    assert torch.equal(values, block_linears(model)[name].weight)
    assert stored[f"{name}.weight_shape"].tolist() == [32, 64]


def test_four_bits_take_four_bits(made, tmp_path):
    model = made()
    before = stored_bytes(model)
    quantize(model, whole(4), 32)
    told = save_compressed(model, None, tmp_path / "out")
    weights = sum(linear.weight.numel() for linear in block_linears(model).values())
    saved = weights * 4 - weights * 4 / 8 - weights / 32 * 4
    assert before - told["weight_bytes"] == pytest.approx(saved, rel=0.02)
    files = [path.stat().st_size for path in (tmp_path / "out").iterdir()]
    assert told["bytes"] == sum(files) > told["weight_bytes"]


def test_what_does_not_load_packed_is_written_plain(tmp_path):
    """Mamba's class sets weights by hand while it is built, which fails where they are packed in several ways."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2)).eval()
    linears = block_linears(model)
    for number, linear in enumerate(linears.values()):
        linear.quantize(rounded(linear.weight, Format("int4", 4), 16 if number % 2 and not linear.shape[1] % 16 else 0))
    told = save_compressed(model, None, tmp_path / "out")
    assert told["layout"] == "plain"
    assert told["formats"] == {}
    assert told["largest_change"] == 0
    [(reason, names)] = told["plain"].items()
    assert reason.startswith("packed, transformers cannot load this architecture")
    assert names == list(linears)
    assert told["weight_bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(other), logits(model))


def test_what_config_says(made, tmp_path):
    model = made(tied=True)
    quantize(model, whole(4), 32)
    linear = block_linears(model)["model.layers.1.mlp.down_proj"]
    linear.fixed.quantized = None
    save_compressed(model, None, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "compressed-tensors"
    assert said["format"] == "pack-quantized"
    assert said["quantization_status"] == "compressed"
    assert said["ignore"] == ["model.layers.1.mlp.down_proj", "lm_head"]
    (group,) = said["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert group["input_activations"] is None
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    assert weights.items() <= group["weights"].items()
    # The model in memory is left as it was.
    assert getattr(model.config, "quantization_config", None) is None
    assert "lm_head.weight" not in tensors_of(tmp_path / "out")
    assert torch.equal(logits(read(tmp_path / "out")), logits(model))


def test_scales_of_a_wider_type_come_back_rounded(made, tmp_path):
    """In bfloat16 a scale is rounded by up to 2^-9 of itself, which moves a weight by up to two of its own steps."""
    model = made(torch.bfloat16)
    quantize(model, whole(4), 32, stored=False)
    told = save_compressed(model, None, tmp_path / "out")
    assert 0 < told["largest_change"] <= 2**-7
    one, other = logits(model).float(), logits(read(tmp_path / "out")).float()
    assert 0 < float((one - other).norm() / one.norm()) < 2**-6


# -- several ------------------------------------------------------------------------------------------------------


def test_several_formats(made, tmp_path):
    model = made()
    quantize(model, whole(8, symmetric=False), 0, only="self_attn.q_proj")
    quantize(model, whole(4, symmetric=False), 32, only="self_attn")
    quantize(model, whole(3), 32, only="up_proj")
    quantize(model, whole(8), 0, only="gate_proj")
    told = save_compressed(model, None, tmp_path / "out")
    assert told["formats"] == {
        "int-quantized: 8-bit integers, a scale a row with a zero point": 2,
        "pack-quantized: 5-bit integers, a scale for 32": 6,
        "pack-quantized: 8-bit integers, a scale a row": 2,
        "pack-quantized: 3-bit integers, a scale for 32": 2,
    }
    assert told["largest_change"] == 0
    assert told["weight_bytes"] == stored_bytes(model)
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said["format"] == "mixed-precision"
    assert said["ignore"] == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "lm_head"]
    other = read(tmp_path / "out")
    assert torch.equal(logits(other), logits(model))
    assert same_weights(model, other)


def test_plain_layers_beside_packed_ones(made, tmp_path):
    """Each of them for a reason that is given."""
    model = made()
    linears = {name.removeprefix("model.layers.0."): one for name, one in block_linears(model).items()}
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)) // 32
    for name, change in {
        "self_attn.q_proj": {"group_of": order},
        "self_attn.k_proj": {"zero": torch.full((32, 2), 1.5)},
        "self_attn.v_proj": {"format": Format("codebook", 4)},
        "self_attn.o_proj": {"format": Format("int12", 12)},
    }.items():
        linears[name].quantize(replace(rounded(linears[name].weight, whole(4), 32), **change))
    linears["mlp.down_proj"].prune(linears["mlp.down_proj"].weight > 0)
    linears["mlp.up_proj"].quantize(rounded(linears["mlp.up_proj"].weight, whole(4), 32))
    linears["mlp.up_proj"].weight.mul_(1.5)
    quantize(model, whole(4), 32, only="gate_proj")
    told = save_compressed(model, None, tmp_path / "out")
    assert told["formats"] == {"pack-quantized: 4-bit integers, a scale for 32": 2}
    assert {
        reason: [name.removeprefix("model.layers.0.") for name in names] for reason, names in told["plain"].items()
    } == {
        "a scale serves inputs that do not follow each other, or not as many as others": ["self_attn.q_proj"],
        "zero points between integers": ["self_attn.k_proj"],
        "codebook has no layout": ["self_attn.v_proj"],
        "int12 has no layout": ["self_attn.o_proj"],
        "the weights have left their grid": ["mlp.up_proj"],
        "zeros have no layout of their own": ["mlp.down_proj"],
    }
    assert told["weight_bytes"] == stored_bytes(model)
    other = read(tmp_path / "out")
    assert torch.equal(logits(other), logits(model))
    assert same_weights(model, other)


def test_a_model_without_layouts_is_an_ordinary_folder(made, tmp_path):
    model = made(config=GPT2Config(**GPT2))
    for linear in block_linears(model).values():
        linear.quantize(rounded(linear.weight, whole(4), 0))
    told = save_compressed(model, None, tmp_path / "out")
    assert told["layout"] == "plain"
    assert told["formats"] == {}
    (names,) = told["plain"].values()
    assert list(told["plain"]) == ["Conv1D is no layer that the library knows"]
    assert len(names) == 4
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["weight_bytes"] == stored_bytes(model)
    assert torch.equal(logits(read(tmp_path / "out")), logits(model))


def test_pruned_and_quantized(made, tmp_path):
    """Zeros are kept by the packed layout; nothing is gained by them."""
    model = made()
    for linear in block_linears(model).values():
        linear.prune(linear.weight.abs() > linear.weight.abs().median())
    quantize(model, whole(4, symmetric=False), 32)
    told = save_compressed(model, None, tmp_path / "out")
    assert told["plain"] == {}
    other = read(tmp_path / "out")
    for name, linear in block_linears(other).items():
        assert bool((linear.weight[~block_linears(model)[name].fixed.mask] == 0).all())
    assert torch.equal(logits(other), logits(model))


# -- predicting, reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_plain_model(made, tmp_path, dtype, tied):
    model = made(dtype, tied=tied)
    save(model, None, tmp_path / "out")
    assert stored_bytes(model) == (tmp_path / "out" / "model.safetensors").stat().st_size


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_own_reader(made, tmp_path, tokenizer, several, dtype, capsys):
    """An ordinary model that can be trained and saved again."""
    model = made(dtype)
    quantize(model, whole(4, symmetric=False), 32, only="self_attn" if several else "")
    quantize(model, whole(3), 0)
    save_compressed(model, tokenizer, tmp_path / "out")
    capsys.readouterr()
    other, read_tokenizer = load(tmp_path / "out", dtype)
    assert capsys.readouterr().err == ""
    assert len(read_tokenizer) == len(tokenizer)
    assert same_weights(model, other)
    assert torch.equal(logits(other), logits(model))
    assert {name for name, _ in other.named_parameters()} == {name for name, _ in model.named_parameters()}
    assert all(parameter.dtype == dtype for parameter in other.parameters())
    assert all(parameter.requires_grad for parameter in other.parameters())
    other.train()
    other(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert all(parameter.grad is not None for parameter in other.parameters())
    save(other, None, tmp_path / "again")
    again, _ = load(tmp_path / "again", dtype)
    assert same_weights(model, again)
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_read_in_a_wider_type(made, tmp_path):
    """`load` gives float32 unless asked otherwise: the stored integers times the stored scales."""
    model = made(torch.bfloat16)
    quantize(model, whole(4), 32)
    save_compressed(model, None, tmp_path / "out")
    other, _ = load(tmp_path / "out")
    for name, linear in block_linears(model).items():
        read = block_linears(other)[name].weight
        assert read.dtype == torch.float32
        torch.testing.assert_close(read, linear.fixed.quantized.values(), rtol=2**-8, atol=0)


def test_without_the_library(made, tmp_path, monkeypatch):
    model = made()
    quantize(model, whole(4), 32)
    save_compressed(model, None, tmp_path / "out")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        decompression.importlib.util, "find_spec", lambda name: None if name == "compressed_tensors" else find(name)
    )
    for act in (lambda: load(tmp_path / "out"), lambda: save_compressed(model, None, tmp_path / "other")):
        with pytest.raises(ModelError, match="not installed") as raised:
            act()
        assert raised.value.fix == 'pip install "thalweg[compress]"'
    # What needs no layout needs no library.
    assert save_compressed(made(), None, tmp_path / "third")["layout"] == "plain"
    assert load(tmp_path / "third")[0] is not None


# -- small floats -------------------------------------------------------------------------------------------------

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M3 = tuple(m / 8 for m in range(8)) + tuple((1 + m / 8) * 2**e for e in range(3) for m in range(8))


def drawn(linear, name, group, grid, powers=True, tensor_scale=None):
    """Elements of a grid of floats with scales that are powers of two or anything, as the quantizer of floats has them.

    grid: magnitudes; None for all of float8.
    """
    rows, columns = linear.shape
    groups = columns // group if group else 1
    generator = torch.Generator().manual_seed(0)
    if grid is None:
        elements = (torch.randn(rows, columns, generator=generator) * 100).to(torch.float8_e4m3fn).float()
    else:
        elements = torch.tensor(grid)[torch.randint(0, len(grid), (rows, columns), generator=generator)]
        elements = elements * (torch.randint(0, 2, (rows, columns), generator=generator) * 2 - 1)
    if powers:
        scale = torch.exp2(torch.randint(-9, -5, (rows, groups), generator=generator).float())
    else:
        scale = torch.rand(rows, groups, generator=generator) * 0.01 + 1e-3
    extra = {}
    if tensor_scale is not None:
        scale = (scale * 1e4).to(torch.float8_e4m3fn).float()
        extra = {"tensor_scale": torch.tensor(tensor_scale)}
    group_of = torch.arange(columns) // (group or columns)
    return Quantized(format_of(name), elements, scale, None, group_of, **extra)


FLOATS = {
    "fp8": ("fp8", 0, None, False, None),
    "fp8 in groups": ("fp8", 32, None, False, None),
    "mxfp8": ("mxfp8", 32, None, True, None),
    "mxfp6_ceil": ("mxfp6_ceil", 32, E2M3, True, None),
    "mxfp4": ("mxfp4", 32, E2M1, True, None),
    "nvfp4": ("nvfp4", 16, E2M1, False, 2.0**-11),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FLOATS)
def test_floats(made, tmp_path, name, dtype):
    model = made(dtype)
    for linear in block_linears(model).values():
        given = drawn(linear, *FLOATS[name])
        if name.startswith("fp8"):
            given = replace(given, scale=given.scale.to(dtype).float())
        linear.quantize(given)
    told = save_compressed(model, None, tmp_path / "out")
    assert told["plain"] == {}
    assert told["weight_bytes"] == stored_bytes(model)
    # The library makes bfloat16 of NVFP4, whose scales times elements have one bit more than that holds.
    assert told["largest_change"] <= (2**-8 if name == "nvfp4" else 0)
    other = read(tmp_path / "out")
    if told["largest_change"] == 0:
        assert torch.equal(logits(other), logits(model))
    one, two = logits(model).float(), logits(other).float()
    assert float((one - two).norm() / one.norm()) < 0.02
    assert same_weights(read(tmp_path / "out"), load(tmp_path / "out", dtype)[0])


def test_floats_beside_integers(made, tmp_path):
    for dtype, packed in ((torch.bfloat16, 6), (torch.float32, 0)):
        model = made(dtype)
        for name, linear in block_linears(model).items():
            if "mlp" in name:
                linear.quantize(drawn(linear, "mxfp4", 32, E2M1))
        quantize(model, whole(4, symmetric=False), 32)
        told = save_compressed(model, None, tmp_path / str(dtype))
        assert sum(count for said, count in told["formats"].items() if said.startswith("mxfp4")) == packed
        # In float32 the integers are alone, so that their zero points can be packed.
        assert any("with a zero point" in said for said in told["formats"]) == (packed == 0)
        assert told["weight_bytes"] == stored_bytes(model)
        other = read(tmp_path / str(dtype))
        assert torch.equal(logits(other), logits(model))


def test_blocks_that_are_not_full_have_no_layout(made):
    model = made(config=LlamaConfig(**{**SIZES, "intermediate_size": 88}))
    for linear in block_linears(model).values():
        given = drawn(linear, "mxfp4", 0, E2M1)
        groups = -(-linear.shape[1] // 32)
        scale = given.scale.expand(-1, groups).contiguous()
        linear.quantize(replace(given, scale=scale, group_of=torch.arange(linear.shape[1]) // 32))
    found, reasons = layouts(block_linears(model))
    assert set(found.values()) == {Layout("mxfp4-pack-quantized", 4, 32)}
    assert [name.rpartition(".")[2] for name in reasons] == ["down_proj", "down_proj"]
