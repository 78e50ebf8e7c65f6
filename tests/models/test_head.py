"""Taking a model apart: measured, for models of the plain kind and of others."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from thalweg.models.head import backbone_and_head, evaluation_mode
from thalweg.models.ladder import build, nearest

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 97,
}


@pytest.mark.parametrize("tie", [True, False])
def test_a_llama_is_plain(tie):
    model = build(nearest("0.2M"), 257, 32, seed=0, tie=tie)
    backbone, head, exact = backbone_and_head(model)
    assert exact
    assert backbone is model.model
    assert head is model.lm_head.weight
    tokens = torch.arange(20)[None]
    hidden = backbone(tokens).last_hidden_state
    assert torch.equal(torch.nn.functional.linear(hidden, head), model(tokens).logits)


def test_gpt2_is_plain():
    model = hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=97, n_positions=16))
    parts = backbone_and_head(model)
    assert parts.exact
    assert parts.backbone is model.transformer


def test_scaled_capped_and_biased_logits_are_not():
    granite = hf.GraniteForCausalLM(hf.GraniteConfig(**SMALL, logits_scaling=8.0))
    gemma = hf.Gemma2ForCausalLM(hf.Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=0.5))
    phi = hf.PhiForCausalLM(hf.PhiConfig(**SMALL))
    with torch.no_grad():
        phi.lm_head.bias.add_(torch.linspace(0, 1e-3, 97))
    assert [backbone_and_head(model).exact for model in (granite, gemma, phi)] == [False, False, False]


def test_a_small_bias_is_noticed_under_autocast():
    phi = hf.PhiForCausalLM(hf.PhiConfig(**SMALL))
    with torch.no_grad():
        phi.lm_head.bias.add_(torch.linspace(0, 1e-3, 97))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not backbone_and_head(phi).exact


def test_modes_and_random_state_are_left_alone():
    model = build(nearest("0.2M"), 257, 32, seed=0)
    model.model.layers[1].eval()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    backbone_and_head(model)
    assert model.training
    assert not model.model.layers[1].training
    assert model.model.layers[0].training
    assert torch.equal(torch.get_rng_state(), before)


def test_modes_come_back_after_an_error():
    model = build(nearest("0.2M"), 257, 32, seed=0)
    with pytest.raises(IndexError), evaluation_mode(model):
        model(torch.tensor([[300]]))
    assert model.training
