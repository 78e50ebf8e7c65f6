"""Samples: the same for the same seed, and nothing noticed."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from thalweg.errors import ModelError
from thalweg.models.generate import generate, samples
from thalweg.models.ladder import build, nearest


@pytest.fixture(scope="module")
def model():
    return build(nearest("0.2M"), 257, 32, seed=1)


def greedy_by_hand(model, tokenizer, prompt, count):
    """Likeliest tokens without a cache."""
    row = list(tokenizer(prompt)["input_ids"])
    start = len(row)
    model.eval()
    with torch.no_grad():
        for _ in range(count):
            row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
            if row[-1] == tokenizer.eos_token_id:
                break
    model.train()
    return tokenizer.decode(row[start:], skip_special_tokens=True)


@pytest.mark.parametrize("prompt", ["a", "hello world", "def f(x):"])
def test_greedy_with_a_cache_is_greedy_without(model, tokenizer, prompt):
    text = generate(model, tokenizer, prompt, 12, temperature=0)
    assert text == greedy_by_hand(model, tokenizer, prompt, 12)
    assert text


def test_a_batch_of_unequal_prompts_is_the_prompts_one_by_one(model, tokenizer):
    prompts = ["a", "hello world", "def f(x):"]
    together = samples(model, tokenizer, prompts, 12, temperature=0)
    assert together == [greedy_by_hand(model, tokenizer, prompt, 12) for prompt in prompts]


def test_learned_positions_too(tokenizer):
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=257, n_positions=32))
    prompts = ["a", "hello world"]
    together = samples(gpt2, tokenizer, prompts, 8, temperature=0)
    assert together == [greedy_by_hand(gpt2, tokenizer, prompt, 8) for prompt in prompts]


def test_the_seed_decides_and_the_run_does_not_notice(model, tokenizer):
    model.train()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = generate(model, tokenizer, "x", 20, temperature=1.0, top_k=None, seed=3)
    torch.rand(5)
    again = generate(model, tokenizer, "x", 20, temperature=1.0, top_k=None, seed=3)
    other = generate(model, tokenizer, "x", 20, temperature=1.0, top_k=None, seed=4)
    assert first == again
    assert first != other
    assert model.training
    torch.manual_seed(7)
    assert torch.equal(torch.get_rng_state(), before)
    generate(model, tokenizer, "x", 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_top_one_is_greedy(model, tokenizer):
    hot = generate(model, tokenizer, "abc", 10, temperature=5.0, top_k=1, seed=9)
    assert hot == generate(model, tokenizer, "abc", 10, temperature=0)


def test_a_long_prompt_keeps_its_end_with_a_warning(model, tokenizer):
    long = "0123456789" * 6
    with pytest.warns(UserWarning, match="60 tokens was cut to its last 22"):
        text = generate(model, tokenizer, long, 10, temperature=0)
    assert text == greedy_by_hand(model, tokenizer, long[-22:], 10)


def test_no_more_than_the_context(model, tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = generate(model, tokenizer, "a", 500, temperature=0)
    assert text == greedy_by_hand(model, tokenizer, "a", 31)


def test_an_empty_prompt_starts_a_text(model, tokenizer):
    assert generate(model, tokenizer, "", 6, temperature=0) == greedy_by_hand(model, tokenizer, "<|endoftext|>", 6)
    assert samples(model, tokenizer, [], 6) == []


def test_the_end_of_text_ends(tokenizer):
    ending = build(nearest("0.2M"), 257, 32, seed=1, tie=False)
    with torch.no_grad():
        ending.lm_head.weight.zero_()
        ending.model.norm.weight.zero_()
    # All logits equal: the likeliest is the first token, until the end is made the likeliest.
    assert len(tokenizer(generate(ending, tokenizer, "a", 9, temperature=0))["input_ids"]) == 9
    handle = ending.lm_head.register_forward_hook(
        lambda module, inputs, out: out.index_fill(-1, torch.tensor(256), 1.0)
    )
    assert generate(ending, tokenizer, "a", 9, temperature=0) == ""
    handle.remove()


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_k": 0}])
def test_options_out_of_range(model, tokenizer, options):
    with pytest.raises(ModelError):
        generate(model, tokenizer, "a", **options)
