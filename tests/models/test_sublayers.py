"""Attention and MLP of a block: found by their names, and measured before anybody relies on it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, OPTConfig

from thalweg.errors import ModelError
from thalweg.models.blocks import decoder_blocks
from thalweg.models.sublayers import is_parallel, stream_of, sublayers_of
from thalweg.models.walker import walk

TOKENS = torch.randint(2, 37, (3, 8), generator=torch.Generator().manual_seed(0))
SIZES = {"vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def drawn(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.fixture
def opt():
    return drawn(OPTConfig(ffn_dim=24, max_position_embeddings=16, word_embed_proj_dim=16, **SIZES))


def neox(parallel):
    return drawn(GPTNeoXConfig(intermediate_size=24, use_parallel_residual=parallel, **SIZES))


def test_an_mlp_without_a_module(opt):
    attention, mlp = sublayers_of(decoder_blocks(opt)[0])
    assert list(attention.modules) == ["self_attn"]
    assert list(mlp.modules) == ["fc1", "fc2"]
    assert [linear.name for linear in mlp.linears] == ["fc1", "fc2"]
    assert {linear.name for linear in attention.linears} == {
        f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")
    }
    assert mlp.parameters == 2 * 16 * 24 + 16 + 24
    assert attention.parameters == 4 * (16 * 16 + 16)
    assert not mlp.gone
    for linear in mlp.linears:
        linear.weight.zero_()
    assert not mlp.gone, "its biases are not zero"


def test_the_parts_add_up(opt):
    for block in walk(opt, TOKENS):
        halves = sublayers_of(block.module)
        with torch.no_grad():
            found = stream_of(block, halves, next(block.batches()))
        assert found.before.shape == found.attention.shape == found.mlp.shape == found.after.shape == (3, 8, 16)
        torch.testing.assert_close(found.before + found.attention + found.mlp, found.after)
        assert float(found.attention.abs().max()) > 0.01
        assert float(found.mlp.abs().max()) > 0.01


@pytest.mark.parametrize("parallel", [True, False])
def test_whether_the_mlp_sees_attention_is_measured(parallel):
    model = neox(parallel)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert [is_parallel(block, sublayers_of(block.module)) for block in walk(model, TOKENS)] == [parallel] * 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_no_attention_and_mlp():
    block = nn.ModuleDict({"mixer": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    with pytest.raises(ModelError, match=r"mixer \(Linear\)"):
        sublayers_of(block)
    three = nn.ModuleDict({"attn": nn.Linear(4, 4), "mlp": nn.Sequential(nn.Linear(4, 4)), "extra": nn.Linear(4, 4)})
    with pytest.raises(ModelError, match=r"attn \(Linear\), mlp \(Sequential\), extra \(Linear\)"):
        sublayers_of(three)
