"""The worked example of the sheet, and layers with inputs that go together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from thalweg.models.linears import Linear


def linear_of(weight):
    module = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    linear = Linear("one", module)
    linear.weight.copy_(weight)
    return linear


@pytest.fixture(name="linear_of")
def _linear_of():
    """Makes a layer with these weights [out, in]."""
    return linear_of


@pytest.fixture
def sheet():
    """weight [2, 4], inputs [6, 4], hessian = inputs^T inputs, damped = with 0.01 of its mean diagonal."""
    weight = torch.tensor([[0.5, -1.0, 0.2, 0.8], [1.0, 0.3, -0.6, 0.1]], dtype=torch.float64)
    inputs = torch.tensor(
        [[1, 0, 1, 2], [0, 1, 1, 0], [2, 0, 1, 1], [0, 2, 0, 1], [1, 1, 0, 0], [0, 0, 3, 1]], dtype=torch.float64
    )
    hessian = inputs.T @ inputs
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(4, dtype=torch.float64)
    return SimpleNamespace(weight=weight, inputs=inputs, hessian=hessian, damped=damped)


@pytest.fixture
def random_layer():
    """Makes (weight [out, in], hessian [in, in]) in float64 with inputs that go together."""

    def make(rows=16, columns=24, seed=0):
        generator = torch.Generator().manual_seed(seed)
        mixing = torch.randn(columns, columns, dtype=torch.float64, generator=generator)
        inputs = torch.randn(200, columns, dtype=torch.float64, generator=generator) @ mixing
        weight = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
        return weight, inputs.T @ inputs / 200

    return make


SMALL = {"vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
SIZES = {
    "llama": ("Llama", SMALL | {"intermediate_size": 24, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", SMALL | {"intermediate_size": 24, "num_key_value_heads": 1}),
    "mistral": ("Mistral", SMALL | {"intermediate_size": 24, "num_key_value_heads": 1}),
    "gpt2": ("GPT2", {"vocab_size": 37, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32}),
    "gpt_neox": ("GPTNeoX", SMALL | {"intermediate_size": 24}),
    "opt": ("OPT", SMALL | {"ffn_dim": 24, "max_position_embeddings": 32, "word_embed_proj_dim": 16}),
    "phi": ("Phi", SMALL | {"intermediate_size": 24}),
    "gemma2": ("Gemma2", SMALL | {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}),
    "bloom": ("Bloom", {"vocab_size": 37, "hidden_size": 16, "n_layer": 4, "n_head": 2}),
    "granite": ("Granite", SMALL | {"intermediate_size": 24, "residual_multiplier": 0.3}),
    "mixtral": ("Mixtral", SMALL | {"intermediate_size": 24, "num_key_value_heads": 1, "num_local_experts": 2}),
}


@pytest.fixture
def four_blocks():  # type: ignore[no-untyped-def]
    """Makes a model of four blocks of a kind, in evaluation mode, with every parameter drawn, biases and gains too."""

    def build(kind: str = "llama", seed: int = 0, **changes):  # type: ignore[no-untyped-def]
        name, sizes = SIZES[kind]
        config = getattr(transformers, f"{name}Config")(**(sizes | {"bos_token_id": 0, "eos_token_id": 1} | changes))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = transformers.AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.15)
        return model.eval()

    return build


@pytest.fixture
def text():  # type: ignore[no-untyped-def]
    """Windows of tokens, int64 [windows, T]."""

    def draw(windows: int = 6, length: int = 12, seed: int = 0) -> torch.Tensor:
        return torch.randint(2, 37, (windows, length), generator=torch.Generator().manual_seed(seed))

    return draw
