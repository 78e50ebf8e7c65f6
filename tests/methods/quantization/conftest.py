"""A model whose inputs depend on one another, and calibration windows for it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

VOCABULARY, CONTEXT = 37, 12


@pytest.fixture
def calibration() -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (24, CONTEXT), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def gpt2() -> Callable[[], GPT2LMHeadModel]:
    """With weights [in, out], biases and tied embeddings."""

    def make() -> GPT2LMHeadModel:
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2)
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
        model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "bias" in name:
                    parameter.normal_(std=0.1)
        return model

    return make


class StandIn:
    """In place of the trained model that claims share: a tiny one, and a corpus of random tokens."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.store = SimpleNamespace(held_out=None)

    def model(self) -> Any:
        return self._make().eval()

    def calibration(self, windows: int, seed: int = 0) -> torch.Tensor:
        return torch.randint(2, VOCABULARY, (windows, CONTEXT), generator=torch.Generator().manual_seed(seed))

    def losses(self, model: Any) -> float:
        tokens = self.calibration(32, 99)
        with torch.no_grad():
            return float(model(tokens, labels=tokens).loss)

    def evaluation(self, model: Any) -> SimpleNamespace:
        return SimpleNamespace(loss=self.losses(model))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, llama: Callable[[], Any]) -> Callable[[Any], StandIn]:
    """Has a claim's module use a tiny model."""

    def put(module: Any) -> StandIn:
        start = StandIn(llama)
        monkeypatch.setattr(module, "trained", lambda seed=0: start)
        if hasattr(module, "evaluate"):
            monkeypatch.setattr(module, "evaluate", lambda model, *_, **__: start.evaluation(model))
        return start

    return put
