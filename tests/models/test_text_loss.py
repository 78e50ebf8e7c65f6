"""The loss of windows against a plain computation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import Gemma2Config, Gemma2ForCausalLM

from thalweg.errors import DataError
from thalweg.models import text_loss as module
from thalweg.models.text_loss import text_loss

WINDOWS = torch.randint(0, 37, (5, 9), generator=torch.Generator().manual_seed(0))


def plain(model):
    with torch.no_grad():
        logits = model.eval()(input_ids=WINDOWS, use_cache=False).logits.double()
    return float(functional.cross_entropy(logits[:, :-1].flatten(0, 1), WINDOWS[:, 1:].flatten()))


def capped():
    """A model whose logits are more than hidden states times a table."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=37, num_hidden_layers=2, head_dim=8, **sizes))


@pytest.mark.parametrize("kind", ["llama", "capped"])
def test_the_mean_over_the_tokens_that_are_predicted(llama, kind, monkeypatch):
    torch.manual_seed(0)
    model = llama() if kind == "llama" else capped()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    expected = plain(model)
    model.train()
    assert text_loss(model, WINDOWS) == pytest.approx(expected, abs=1e-6)
    assert model.training
    # In pieces that no window and no batch fits.
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 20)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 37 * 5)
    assert text_loss(model, WINDOWS) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("nothing", [WINDOWS[:0], WINDOWS[:, :1], WINDOWS[0]])
def test_no_text(llama, nothing):
    with pytest.raises(DataError, match="two tokens at least"):
        text_loss(llama(), nothing)
