"""The claim on retraining few parameters: short runs of it are deterministic, and its judgement is right."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from thalweg.arena.claims import prune_retrain
from thalweg.arena.claims.spread import spread
from thalweg.models.compression import block_linears

pytestmark = pytest.mark.usefixtures("one_thread")


class Source:
    """A tiny model that nobody trained, on text that counts upwards."""

    def __init__(self) -> None:
        tokens = np.arange(4000) % 37
        self.store = SimpleNamespace(
            held_out=SimpleNamespace(token_count=len(tokens), read=lambda start, stop: tokens[start:stop])
        )

    def model(self):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
        return LlamaForCausalLM(LlamaConfig(vocab_size=37, tie_word_embeddings=True, **sizes)).eval()

    def calibration(self, windows, seed=0):
        starts = torch.randint(0, 37, (windows, 1), generator=torch.Generator().manual_seed(seed))
        return (starts + torch.arange(prune_retrain.CONTEXT)) % 37


def short(seed=0):
    return prune_retrain.prune_retrain(seed, steps=4, rates=(1e-3, 1e-2), sparsities=(0.5, 0.7), held_out=4)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(prune_retrain, "trained", Source)


def test_short_runs_are_deterministic():
    found = short()
    assert found == short()
    assert found != short(seed=1)
    json.dumps(dict(found.numbers), allow_nan=False)
    assert len(found.sentence) > 100
    assert found.numbers["share norms"] < found.numbers["share mask_lora"] < 1
    assert found.numbers["recovered full 50%"] == found.numbers["recovered full 70%"] == 1.0


def test_full_retraining_moves_everything_but_the_zeros():
    source = Source()
    windows, held = source.calibration(4), spread(source.store.held_out, 4, prune_retrain.CONTEXT)
    trial = prune_retrain._Trial(source.model(), 0.5, windows, held, 2, 0)
    trial.run("full", 1e-2)
    assert not any(torch.equal(value, trial.state[name]) for name, value in trial.model.state_dict().items())
    for linear in block_linears(trial.model).values():
        assert not linear.weight[~linear.fixed.mask].any()
    assert not any(parameter._backward_hooks for parameter in trial.model.parameters())


@pytest.mark.parametrize(
    ("norms", "masked", "jumps", "behind", "holds"),
    [
        ([0.6, 0.3], [0.9, 0.9], [0.1, 0.1], [0.1, 0.1], True),
        ([0.4, 0.3], [0.9, 0.9], [0.1, 0.1], [0.1, 0.1], False),
        ([0.6, 0.3], [0.9, 0.7], [0.1, 0.1], [0.1, 0.1], False),
        ([0.6, 0.95], [0.9, 0.9], [0.1, 0.1], [0.1, 0.1], False),
        ([0.6, 0.3], [0.9, 0.9], [-0.1, 0.1], [0.1, 0.1], False),
        ([0.6, 0.3], [0.9, 0.9], [0.1, 0.1], [0.1, -0.1], False),
    ],
)
def test_the_judgement(norms, masked, jumps, behind, holds):
    recovered = {"norms": norms, "mask_lora": masked, "full": [1.0, 1.0]}
    assert prune_retrain._holds(recovered, jumps, behind) is holds
    assert prune_retrain._holds({**recovered, "full": [0.0, 1.0]}, jumps, behind) is None
