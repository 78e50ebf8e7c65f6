"""Taking blocks out: what depends on a block's place is counted anew, or the removal is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from thalweg.errors import ModelError
from thalweg.models.depth import remove_blocks

TOKENS = torch.randint(2, 37, (2, 12), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


@pytest.fixture
def sliding():
    """A Qwen2 of four blocks, two of which see three tokens only."""
    torch.manual_seed(0)
    types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(
        vocab_size=37, num_hidden_layers=4, sliding_window=3, use_sliding_window=True, layer_types=types, **sizes
    )
    return Qwen2ForCausalLM(config).eval()


def test_blocks_keep_their_kind_of_attention(sliding, tmp_path):
    skipping = copy.deepcopy(sliding)
    skipping.model.layers[0].forward = lambda hidden, *rest, **named: hidden
    remove_blocks(sliding, [0])
    assert sliding.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert [layer.self_attn.layer_idx for layer in sliding.model.layers] == [0, 1, 2]
    assert torch.equal(logits(sliding), logits(skipping))
    sliding.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(sliding))


def test_nothing_removed(sliding):
    before = logits(sliding)
    remove_blocks(sliding, [])
    assert torch.equal(logits(sliding), before)
    assert sliding.config.num_hidden_layers == 4


@pytest.mark.parametrize("removed", [[0, 1, 2, 3], [4], [-1]])
def test_blocks_that_cannot_be_removed(sliding, removed):
    with pytest.raises(ModelError, match="cannot be removed"):
        remove_blocks(sliding, removed)
    assert len(sliding.model.layers) == sliding.config.num_hidden_layers == 4


def gpt2(**options):
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=37, n_embd=16, n_layer=4, n_head=2, n_positions=32, **options)).eval()


def test_a_block_that_would_be_another_in_its_new_place_is_refused():
    """Attention scaled by 1 / (place + 1): block 3 in place 2 would be scaled otherwise once it is loaded."""
    model = gpt2(scale_attn_by_inverse_layer_idx=True)
    before = logits(model)
    with pytest.raises(ModelError, match=r"attn.scaling of block 2 depends on its place"):
        remove_blocks(model, [1])
    assert torch.equal(logits(model), before)
    assert model.config.num_hidden_layers == len(model.transformer.h) == 4
    # The last one's place is nobody else's.
    remove_blocks(model, [3])
    assert model.config.n_layer == len(model.transformer.h) == 3


def test_the_random_state_is_left_alone():
    model = gpt2()
    random = torch.get_rng_state()
    remove_blocks(model, {1, 2})
    assert torch.equal(torch.get_rng_state(), random)
    assert [block.attn.layer_idx for block in model.transformer.h] == [0, 1]
