"""Every parameter of a model lands in one group, and in the right one."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from thalweg.errors import ModelError
from thalweg.models.parameter_groups import parameter_groups


def kinds(model, **options):
    groups = parameter_groups(model, **options)
    kind_of = {id(p): group["kind"] for group in groups for p in group["params"]}
    assert len(kind_of) == sum(len(group["params"]) for group in groups)
    return groups, {name: kind_of[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def test_llama_tied(llama):
    groups, named = kinds(llama(tied=True))
    assert [group["kind"] for group in groups] == ["matrix", "embedding", "vector"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0, 1.0]
    assert [len(group["params"]) for group in groups] == [14, 1, 5]
    assert named["model.embed_tokens.weight"] == "embedding"
    assert named["model.layers.0.mlp.up_proj.weight"] == "matrix"
    assert named["model.norm.weight"] == "vector"


def test_llama_untied(llama):
    groups, named = kinds(llama(tied=False), weight_decay=0.3, lr_scale={"head": 0.5})
    assert [group["kind"] for group in groups] == ["matrix", "embedding", "head", "vector"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0, 0.3, 0.0]
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0, 0.5, 1.0]
    assert named["lm_head.weight"] == "head"


def test_gpt2_conv1d_and_positions():
    config = GPT2Config(vocab_size=40, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
    groups, named = kinds(GPT2LMHeadModel(config))
    assert named["transformer.wte.weight"] == "embedding"
    assert named["transformer.wpe.weight"] == "embedding"
    assert named["transformer.h.0.attn.c_attn.weight"] == "matrix"
    assert named["transformer.h.0.attn.c_attn.bias"] == "vector"
    assert [group.get("transposed", False) for group in groups] == [True, False, False]


def test_experts_are_matrices_and_filters_vectors():
    model = torch.nn.Module()
    model.experts = torch.nn.Parameter(torch.ones(3, 4, 5))
    model.filters = torch.nn.Conv1d(4, 4, 3, groups=4)
    _, named = kinds(model)
    assert named == {"experts": "matrix", "filters.weight": "vector", "filters.bias": "vector"}


def test_frozen_parameters_are_left_out(llama):
    model = llama()
    model.model.embed_tokens.weight.requires_grad_(False)
    groups, _ = kinds(model)
    assert [group["kind"] for group in groups] == ["matrix", "vector"]


def test_mistakes_are_named(llama):
    with pytest.raises(ModelError, match="no trainable"):
        parameter_groups(llama().requires_grad_(False))
    with pytest.raises(ModelError, match="heads"):
        parameter_groups(llama(), lr_scale={"heads": 2.0})
