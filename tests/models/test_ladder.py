"""The ladder of shapes, and models built from it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional

from thalweg.errors import ModelError
from thalweg.models.initialisation import initialise
from thalweg.models.ladder import LADDER, Shape, build, flops_per_token, nearest, non_embedding_parameters

NUMBERS = {"K": 1e3, "M": 1e6, "B": 1e9}


def counted(model):
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


@pytest.mark.parametrize("shape", LADDER, ids=lambda shape: shape.name)
def test_names_say_the_size_and_heads_divide(shape):
    named = float(shape.name[:-1]) * NUMBERS[shape.name[-1]]
    assert abs(shape.parameters / named - 1) < 0.06
    assert shape.heads * shape.head_size == shape.width
    assert shape.heads % (shape.key_value_heads or shape.heads) == 0
    assert shape.head_size == (32 if shape.width < 256 else 64 if shape.width < 1024 else 128)
    assert shape.feed_forward % (32 if shape.width < 512 else 64 if shape.width < 1024 else 128) == 0
    assert 2.3 < shape.feed_forward / shape.width < 2.8
    assert 16 <= shape.width / shape.layers <= 128


def test_rungs_ascend_by_at_most_a_factor_of_two():
    sizes = [shape.parameters for shape in LADDER]
    steps = [b / a for a, b in itertools.pairwise(sizes)]
    assert len(LADDER) == 20
    assert min(steps) > 1.3
    assert max(steps) < 2.1


@pytest.mark.parametrize("shape", LADDER, ids=lambda shape: shape.name)
def test_counts_are_exact(shape):
    with torch.device("meta"):
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=64,
            hidden_size=shape.width,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads or shape.heads,
        )
        model = LlamaForCausalLM(config)
    assert counted(model) == non_embedding_parameters(shape)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ("5M", "5M"),
        ("5m", "5M"),
        (" 4.5 M ", "5M"),
        ("300k", "0.35M"),
        ("1.1B", "1B"),
        ("250000", "0.2M"),
        ("1e6", "1M"),
        (1e6, "1M"),
        (50_000_000, "50M"),
        (1, "0.2M"),
        (1e15, "3B"),
        ("5B", "3B"),
        (".5M", "0.5M"),
    ],
)
def test_nearest(size, name):
    assert nearest(size).name == name


def test_every_rung_is_nearest_to_itself():
    assert [nearest(shape.name) for shape in LADDER] == list(LADDER)
    assert [nearest(shape.parameters) for shape in LADDER] == list(LADDER)


@pytest.mark.parametrize(
    "size", ["", "big", "5X", "M", "-5M", "0M", "nan", "inf", "70B", "10", 0, -1.0, math.nan, True]
)
def test_sizes_that_are_none(size):
    with pytest.raises(ModelError) as caught:
        nearest(size)
    assert "0.2M" in caught.value.fix


def test_a_near_miss_is_suggested():
    with pytest.raises(ModelError, match="Did you mean '10M'"):
        nearest("10MM")


def test_flops_by_hand():
    shape = Shape("x", layers=3, width=8, heads=2, feed_forward=16)
    per_layer = 4 * 64 + 3 * 8 * 16 + 16
    assert non_embedding_parameters(shape) == 3 * per_layer + 8
    expected = 6 * (3 * per_layer + 8 + 100 * 8) + 12 * 3 * 8 * 32 / 2
    assert flops_per_token(shape, vocab_size=100, context=32) == expected


@pytest.mark.parametrize("name", ["0.2M", "1M"])
def test_flops_agree_for_shape_config_and_model(name):
    shape = nearest(name)
    model = build(shape, vocab_size=300, context=64, seed=0)
    assert flops_per_token(shape, 300, 64) == flops_per_token(model) == flops_per_token(model.config)
    assert flops_per_token(model, context=128) > flops_per_token(model)


def test_flops_agree_with_torchs_own_counter():
    """The matrices of a forward pass; torch counts the whole square of attention, we count the causal half."""
    from torch.utils.flop_counter import FlopCounterMode

    shape = nearest("0.2M")
    model = build(shape, vocab_size=300, context=32, seed=0).eval()
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 32, dtype=torch.long))
    half_of_attention = 2 * shape.layers * shape.width * 32
    norms = shape.layers * 2 * shape.width + shape.width
    rotation = counter.get_total_flops() / 64 - (flops_per_token(model) / 3 + half_of_attention - 2 * norms)
    # The table of rotary angles is made by a small product once a sequence.
    assert 0 <= rotation < 0.002 * flops_per_token(model)


def test_same_seed_same_weights_whatever_was_drawn_before():
    torch.manual_seed(1)
    first = build(nearest("0.2M"), 257, 32, seed=5)
    torch.rand(100)
    before = torch.get_rng_state()
    second = build(nearest("0.2M"), 257, 32, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = build(nearest("0.2M"), 257, 32, seed=6)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_tying_follows_the_rung_unless_told():
    assert nearest("50M").tied
    assert not nearest("100M").tied
    shape = nearest("0.2M")
    tied, free = build(shape, 257, 32, seed=0), build(shape, 257, 32, seed=0, tie=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert free.lm_head.weight is not free.model.embed_tokens.weight
    assert sum(p.numel() for p in tied.parameters()) == shape.parameters + 257 * 64
    assert sum(p.numel() for p in free.parameters()) == shape.parameters + 2 * 257 * 64


def test_built_for_training():
    model = build(nearest("0.2M"), 257, 48, seed=0)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert model.config.use_cache is False
    assert model.config.max_position_embeddings == 48
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("vocabulary", "context"), [(1, 32), (100, 0)])
def test_sizes_that_make_no_model(vocabulary, context):
    with pytest.raises(ModelError):
        build(nearest("0.2M"), vocabulary, context, seed=0)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", ["0.2M", "3M", "10M"])
def test_signals_keep_their_size_at_every_width(name, tie):
    model = build(nearest(name), vocab_size=512, context=32, seed=0, tie=tie)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    up, down = (weights[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("up", "down"))
    assert float(up.std()) == pytest.approx(1 / math.sqrt(width), rel=0.03)
    assert float(down.std()) == pytest.approx(1 / math.sqrt(down.shape[1] * 2 * layers), rel=0.03)
    table = 1 / math.sqrt(width) if tie else 1.0
    assert float(weights["model.embed_tokens.weight"].std()) == pytest.approx(table, rel=0.03)
    assert bool((weights["model.norm.weight"] == 1).all())
    tokens = torch.arange(64).view(2, 32)
    with torch.no_grad():
        stream = model.model(tokens, output_hidden_states=True).hidden_states[-2]
        loss = functional.cross_entropy(model(tokens).logits.flatten(0, 1), tokens.flatten() + 64)
    assert 0.1 < float(stream.std()) < 1.6
    # Logits of unit size cost half a nat over log(vocab_size), those of 0.2 a fiftieth.
    assert float(loss) - math.log(512) == pytest.approx(0.5 if tie else 0.02, abs=0.25)


def test_initialise_restores_a_damaged_model():
    model = build(nearest("0.2M"), 257, 32, seed=3)
    wanted = [p.clone() for p in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    initialise(model, 3)
    assert all(torch.equal(a, b) for a, b in zip(wanted, model.parameters(), strict=True))
