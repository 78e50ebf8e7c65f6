"""Somebody's own model: what it costs, and a plan without a forecast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thalweg.cli.tables import show_plan
from thalweg.errors import ModelError


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A tiny Llama and a tiny GPT-2 as Hugging Face folders."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    llama = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=48,
    )  # fmt: skip
    gpt = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    made = {}
    for name, model in (("llama", LlamaForCausalLM(llama)), ("gpt2", GPT2LMHeadModel(gpt))):
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
    return made


@pytest.mark.parametrize("budget", ["30s", "40 steps", "1e12 flops"])
@pytest.mark.parametrize(("name", "longest"), [("llama", 48), ("gpt2", 64)])
def test_an_own_model_is_planned_without_a_forecast(made_up, folders, capsys, name, longest, budget):
    plan = made_up.plan(budget=budget, model=str(folders[name]), store=made_up.corpus(1e6, vocab_size=300))
    chosen = plan["chosen"]
    assert chosen["model"] == chosen["model_folder"] == str(folders[name])
    assert chosen["context"] == longest
    assert chosen["predicted_bits_per_byte"] is chosen["predicted_low"] is chosen["predicted_high"] is None
    assert [row["predicted_bits_per_byte"] for row in plan["candidates"]] == [None]
    assert chosen["steps"] >= 1
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan
    show_plan(plan)
    assert "No forecast" in capsys.readouterr().err


def test_an_own_model_is_counted_without_its_tables(made_up, folders):
    size = made_up.planner(model=str(folders["llama"]), store=made_up.corpus(1e6, vocab_size=300)).candidates.sizes[0]
    # Two blocks of four square and three feed-forward matrices with two norms, and the last norm.
    assert size.parameters == 2 * (4 * 32**2 + 3 * 32 * 64 + 2 * 32) + 32
    assert size.stored == size.parameters + 2 * 300 * 32
    assert size.flops(10) == 6 * (size.parameters + 300 * 32) + 12 * 2 * 32 * 10 / 2


def test_an_own_model_must_fit_the_recipe(made_up, folders):
    with pytest.raises(ModelError, match="the model knows 300"):
        made_up.plan(budget="40 steps", model=str(folders["gpt2"]))
    small = made_up.corpus(1e6, vocab_size=300)
    with pytest.raises(ModelError, match="longer than the 64"):
        made_up.plan(budget="40 steps", model=str(folders["gpt2"]), store=small, data={"context": 65})
    with pytest.raises(ModelError, match="no such model folder"):
        made_up.plan(budget="40 steps", model="no/where", store=small)
