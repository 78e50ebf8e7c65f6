"""How the weights of fresh models were drawn is recognised, and that of others refused."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from thalweg.errors import ModelError
from thalweg.models.initialisation import convention
from thalweg.models.ladder import build, nearest

WRITERS = ("o_proj.weight", "down_proj.weight")


def matrices(model):
    named = [(name, parameter) for name, parameter in model.named_parameters() if ".layers." in name]
    return [(parameter, name.endswith(WRITERS)) for name, parameter in named if parameter.ndim == 2]


def transformers_own(std):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=61, initializer_range=std, **shape))


@pytest.mark.parametrize("rung", ["0.2M", "0.5M", "5M"])
def test_models_of_the_ladder(rung):
    model = build(nearest(rung), 64, 16, seed=0)
    assert convention(model, matrices(model)) == (True, True)


# 1 / sqrt(64) is 0.125: a standard deviation near it is the config's word against the width's.
@pytest.mark.parametrize("std", [0.02, 0.006, 0.11, 0.14])
def test_models_of_transformers(std):
    model = transformers_own(std)
    assert convention(model, matrices(model)) == (False, False)


@pytest.mark.parametrize("factor", [0.8, 1.25, 0.0, float("nan")])
def test_other_weights_are_not_fresh(factor):
    for model in (build(nearest("0.2M"), 64, 16, seed=0), transformers_own(0.02)):
        with torch.no_grad():
            for parameter, _ in matrices(model):
                parameter.mul_(factor)
        with pytest.raises(ModelError, match="fresh"):
            convention(model, matrices(model))
