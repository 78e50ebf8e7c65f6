"""Half the width and depth and back: worked numbers, the matrices of the paper, and what is kept of the function."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from thalweg.errors import ModelError
from thalweg.models.coalescing import Coalescing, neighbours, paired


def model_of(seed=0, layers=4, heads=4, shared=None, tied=False, inner=20, **more):
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=8 * heads,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared or heads,
        max_position_embeddings=16,
        tie_word_embeddings=tied,
        **more,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 1.0))
    return model


def named(model):
    return dict(model.named_parameters())


def logits_of(model):
    tokens = torch.randint(0, 31, (3, 11), generator=torch.Generator().manual_seed(1))
    return model(input_ids=tokens, use_cache=False).logits


def enlarged(small, large_config, **how):
    """The small model's weights, de-coalesced into a model of the large configuration."""
    way = Coalescing.of(large_config, **how)
    large = LlamaForCausalLM(copy.deepcopy(large_config)).double().eval()
    weights = way.decoalesce(named(small))
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            parameter.copy_(weights[name])
    return way, large


def test_worked_examples():
    groups = paired(4)
    small = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    large = groups.shares(groups.copies(small, 0), 1)
    assert large.tolist() == [[0.5, 1.0, 0.5, 1.0], [1.5, 2.0, 1.5, 2.0]] * 2
    hidden = torch.tensor([1.0, -1.0])
    assert (large @ groups.copies(hidden, 0)).tolist() == [-1.0, -1.0, -1.0, -1.0]
    assert groups.sum(groups.mean(torch.arange(16.0).view(4, 4), 0), 1).tolist() == [[10.0, 12.0], [18.0, 20.0]]


def test_groups():
    assert paired(6).group_of.tolist() == [0, 1, 2, 0, 1, 2]
    assert paired(8, block=2).group_of.tolist() == [0, 1, 2, 3] * 2
    assert paired(6, block=2).group_of.tolist() == [0, 1, 2, 3, 0, 1]  # the second of three blocks stays alone
    assert neighbours(5).group_of.tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("layers", "heads"), [(4, 4), (5, 3), (1, 1)])
def test_coalescing_undoes_decoalescing(layers, heads, tied):
    model = model_of(layers=layers, heads=heads, tied=tied)
    way = Coalescing.of(model.config)
    small = way.coalesce(named(model))
    again = way.coalesce(way.decoalesce(small))
    assert small.keys() == again.keys()
    for name, value in small.items():
        torch.testing.assert_close(again[name], value, atol=1e-14, rtol=0)


def test_sizes_of_the_small_model():
    model = model_of(layers=5, heads=3, inner=20)
    small = Coalescing.of(model.config).small(model)
    config = small.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 16, 2)
    assert (config.intermediate_size, config.head_dim) == (10, 8)
    assert small.dtype == torch.float64
    assert not small.training
    assert logits_of(small).isfinite().all()
    assert model.config.hidden_size == 24


def test_equals_the_papers_matrices():
    """W_s = F_out W norm(F_in^T) and layers averaged by R, with dense matrices."""
    model = model_of(layers=4, heads=2, inner=12)

    def matrix(count):
        half = count // 2
        return torch.cat([torch.eye(half), torch.eye(half)], 1).double() / 2

    stream, inner = matrix(16), matrix(12)
    found = Coalescing.of(model.config).coalesce(named(model))
    first, second = model.model.layers[2], model.model.layers[3]
    for name, out, into in (
        ("self_attn.q_proj", stream, stream),
        ("self_attn.v_proj", stream, stream),
        ("self_attn.o_proj", stream, stream),
        ("mlp.up_proj", inner, stream),
        ("mlp.down_proj", stream, inner),
    ):
        mean = (first.get_submodule(name).weight + second.get_submodule(name).weight) / 2
        expected = out @ mean @ (into.T / into.T.sum(1, keepdim=True))
        torch.testing.assert_close(found[f"model.layers.1.{name}.weight"], expected)
    torch.testing.assert_close(found["model.embed_tokens.weight"], model.model.embed_tokens.weight @ stream.T)
    torch.testing.assert_close(found["model.norm.weight"], stream @ model.model.norm.weight)
    torch.testing.assert_close(found["lm_head.weight"], 2 * model.lm_head.weight @ stream.T)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shared", [4, 2, 1])
def test_width_is_enlarged_without_changing_the_function(tied, shared):
    """With the authors' rule for tied tables (half the table) it would not stay."""
    large_config = model_of(heads=4, shared=shared, tied=tied).config
    small = Coalescing.of(large_config, depth=False).small(model_of(heads=4, shared=shared, tied=tied))
    _, large = enlarged(small, large_config, depth=False)
    assert large.config.hidden_size == 2 * small.config.hidden_size
    torch.testing.assert_close(logits_of(large), logits_of(small), atol=1e-5, rtol=1e-5)
    if tied:
        with torch.no_grad():
            large.model.norm.weight.mul_(2.0)
            large.model.embed_tokens.weight.mul_(0.5)
        assert (logits_of(large) - logits_of(small)).abs().max() > 0.05


def test_depth_is_not_enlarged_for_nothing():
    config = model_of().config
    small = Coalescing.of(config, width=False).small(model_of())
    _, large = enlarged(small, config, width=False)
    assert torch.equal(large.model.layers[0].mlp.up_proj.weight, large.model.layers[1].mlp.up_proj.weight)
    assert (logits_of(large) - logits_of(small)).abs().max() > 0.05


def test_width_and_depth_commute():
    model = model_of()
    both = Coalescing.of(model.config).coalesce(named(model))
    narrow = Coalescing.of(model.config, depth=False).small(model)
    after = Coalescing.of(narrow.config, width=False).coalesce(named(narrow))
    for name, value in both.items():
        torch.testing.assert_close(after[name], value)


def test_doubled_channels_stay_equal_and_mixed_ones_do_not():
    """Gradients of the copies are equal after de-coalescing; a tenth of the large model tells them apart."""
    original = model_of()
    _, large = enlarged(Coalescing.of(original.config).small(original), original.config)

    def difference():
        large.zero_grad()
        logits_of(large).square().mean().backward()
        gradient = large.model.layers[0].mlp.up_proj.weight.grad
        half = len(gradient) // 2
        return ((gradient[:half] - gradient[half:]).norm() / gradient.norm()).item()

    assert difference() < 1e-6
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            parameter.lerp_(original.get_parameter(name), 0.1)
    assert difference() > 0.01


def test_mistakes_are_named():
    with pytest.raises(ModelError, match="6 heads on 3"):
        Coalescing.of(model_of(heads=6, shared=3).config)
    Coalescing.of(model_of(heads=6, shared=3).config, width=False)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    with pytest.raises(ModelError, match="no rule"):
        Coalescing.of(model_of().config).coalesce(named(gpt))
