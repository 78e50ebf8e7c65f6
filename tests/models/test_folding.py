"""Folding finds the operation in front of linear layers where the block's outputs stay as they are, and only there."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
)

from thalweg.models.folding import Foldings, multiply
from thalweg.models.walker import walk

SIZES = {"vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
WIDE = {**SIZES, "intermediate_size": 24, "pad_token_id": 0}
GPT2 = {"vocab_size": 37, "n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 32}
OPT = {
    **SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32, "pad_token_id": 0
}  # fmt: skip
LLAMA = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.o_proj": "self_attn.v_proj",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.down_proj": "mlp.up_proj",
}
GROUPED = {**LLAMA, "self_attn.o_proj": None}
BEFORE_OPT = {"self_attn.q_proj": "self_attn_layer_norm", "self_attn.out_proj": "self_attn.v_proj"}
NEOX = {
    "attention.query_key_value": "input_layernorm",
    "attention.dense": "attention.query_key_value",
    "mlp.dense_h_to_4h": "post_attention_layernorm",
    "mlp.dense_4h_to_h": None,
}
CASES = {
    "llama": (LlamaConfig(**WIDE), LLAMA),
    "llama with biases": (LlamaConfig(**WIDE, attention_bias=True, mlp_bias=True), LLAMA),
    "llama, grouped queries": (LlamaConfig(**WIDE, num_key_value_heads=2), GROUPED),
    "mistral": (MistralConfig(**WIDE, num_key_value_heads=4), LLAMA),
    "qwen2": (Qwen2Config(**WIDE, num_key_value_heads=4), LLAMA),
    # Gains are stored less one, and norms stand behind the layers, too.
    "gemma2": (Gemma2Config(**WIDE, num_key_value_heads=4, head_dim=4), dict.fromkeys(LLAMA) | {
        "self_attn.o_proj": "self_attn.v_proj", "mlp.down_proj": "mlp.up_proj"
    }),
    "opt": (OPTConfig(**OPT), {**BEFORE_OPT, "fc1": "final_layer_norm", "fc2": "fc1"}),
    # The norm behind the attention also feeds the next residual; behind a GELU nothing can be folded.
    "opt, norms behind": (
        OPTConfig(**OPT, do_layer_norm_before=False, activation_function="gelu"),
        {"self_attn.q_proj": None, "self_attn.out_proj": "self_attn.v_proj", "fc1": None, "fc2": None},
    ),
    "gpt2": (
        GPT2Config(**GPT2),
        {"attn.c_attn": "ln_1", "attn.c_proj": "attn.c_attn", "mlp.c_fc": "ln_2", "mlp.c_proj": None},
    ),
    "gpt_neox": (GPTNeoXConfig(**WIDE), NEOX),
    "gpt_neox, one after the other": (GPTNeoXConfig(**WIDE, use_parallel_residual=False), NEOX),
    # One norm feeds attention and MLP: all four layers are one set.
    "phi": (
        PhiConfig(**WIDE, num_key_value_heads=4),
        {"self_attn.q_proj": "input_layernorm", "self_attn.dense": "self_attn.v_proj", "mlp.fc2": None},
    ),
}  # fmt: skip


def model_of(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Large enough that no activation works where it is nearly linear.
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.to(dtype)


def tokens(windows=3, length=8):
    return torch.randint(2, 37, (windows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
def test_what_is_found(case):
    config, wanted = CASES[case]
    for block in walk(model_of(config), tokens()):
        foldings = Foldings(block)
        found = {names[0]: foldings.find(names) for names in block.groups()}
        assert {name: one and one.name for name, one in found.items()} == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_the_function_stays(case, dtype):
    """All that can be folded, at once, with scales that are no powers of two."""
    model = model_of(CASES[case][0], dtype)
    before = copy.deepcopy(model)
    folded = 0
    for block in walk(model, tokens()):
        foldings = Foldings(block)
        pairs = [(names, found) for names in block.groups() if (found := foldings.find(names)) is not None]
        for names, found in pairs:
            linears = [block.linears[name] for name in names]
            scale = torch.linspace(0.3, 3.0, linears[0].shape[1])
            found.divide(scale)
            for linear in linears:
                multiply(linear, scale)
            folded += 1
    assert folded == sum(one is not None for one in CASES[case][1].values())
    with torch.no_grad():
        one, other = before(input_ids=tokens()).logits.float(), model(input_ids=tokens()).logits.float()
    rounding = {torch.float32: 2e-6, torch.bfloat16: 0.05}[dtype]
    assert float((one - other).norm() / one.norm()) < rounding
    if dtype == torch.float32:
        assert not torch.equal(one, other)


def test_finding_changes_nothing():
    model = model_of(CASES["gpt2"][0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for block in walk(model, tokens()):
        foldings = Foldings(block)
        for names in block.groups():
            foldings.find(names)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rows_of_a_fused_layer():
    """GPT-2 has query, key and value one after the other, GPT-NeoX in turns, head by head."""
    rows = {}
    for case, name in (("gpt2", "attn.c_proj"), ("gpt_neox", "attention.dense")):
        for block in walk(model_of(CASES[case][0]), tokens()):
            rows[case] = Foldings(block).find([name]).rows.tolist()
    assert rows["gpt2"] == list(range(32, 48))
    assert rows["gpt_neox"] == [*range(8, 12), *range(20, 24), *range(32, 36), *range(44, 48)]


def test_a_quantized_layer_is_not_folded_into():
    from thalweg.numerics.number_formats import Format, rounded

    for block in walk(model_of(CASES["llama"][0]), tokens()):
        linear = block.linears["self_attn.v_proj"]
        linear.quantize(rounded(linear.weight, Format("int8", 8), 0))
        assert Foldings(block).find(["self_attn.o_proj"]) is None
        linear.fixed.quantized = None
        assert Foldings(block).find(["self_attn.o_proj"]).name == "self_attn.v_proj"
