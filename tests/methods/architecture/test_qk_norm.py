"""qk-norm against a layer by hand, its bound, and that what is saved loads anywhere."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from thalweg.errors import ModelError
from thalweg.methods.architecture import QKNorm
from thalweg.methods.architecture.qk_norm import qk_norm
from thalweg.models.ladder import build, flops_per_token, nearest
from thalweg.models.parameter_groups import parameter_groups
from thalweg.runs import Run
from thalweg.sessions.train import train


def largest_logits(model, tokens):
    """The largest |q . k| / sqrt(d) of every layer, from the probabilities of eager attention with no mask to help."""
    found = []
    hooks = []
    for layer in model.model.layers:
        attention = layer.self_attn

        def look(module, arguments, named, attention=attention):
            hidden, shape = named["hidden_states"], (*named["hidden_states"].shape[:2], -1, attention.head_dim)
            query = attention.q_norm(attention.q_proj(hidden).view(shape))
            key = attention.k_norm(attention.k_proj(hidden).view(shape))
            # A rotation changes no length: the product of lengths bounds the logits.
            found.append((query.norm(dim=-1).amax() * key.norm(dim=-1).amax() / attention.head_dim**0.5).item())

        hooks.append(attention.register_forward_pre_hook(look, with_kwargs=True))
    model(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def test_the_norm_by_hand():
    """(1, 2, 3, 4): root mean square sqrt(7.5), length sqrt(4) afterwards, so that no logit passes 4 / sqrt(4) = 2."""
    model = qk_norm(tiny(heads=4, width=16))
    norm = model.model.layers[0].self_attn.q_norm
    vector = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(norm(vector), vector / 7.5**0.5, rtol=1e-4, atol=0)
    assert norm(vector).square().sum().item() == pytest.approx(4.0, rel=1e-4)


def test_it_is_the_sources_layer_norm_where_a_head_has_no_mean():
    norm = qk_norm(tiny(heads=4, width=16)).model.layers[0].self_attn.q_norm
    vector = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = torch.tensor([-1.341640, -0.447213, 0.447213, 1.341640])
    torch.testing.assert_close(norm(vector - vector.mean()), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.nn.functional.layer_norm(vector, (4,)), expected, rtol=1e-4, atol=0)


def tiny(heads=2, width=16, **changes):
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": heads, "hidden_size": width}
    config = LlamaConfig(vocab_size=37, intermediate_size=24, max_position_embeddings=16, **shape, **changes)
    return LlamaForCausalLM(config)


TOKENS = torch.arange(2, 34).view(2, 16)


def test_no_logit_passes_the_root_of_the_head_size():
    model = tiny()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(1000.0)
    assert max(largest_logits(qk_norm(model), TOKENS)) <= 8**0.5 + 1e-4


def test_what_scales_a_projection_changes_nothing():
    model = qk_norm(tiny()).eval()
    before = model(input_ids=TOKENS).logits
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(30.0)
            layer.self_attn.k_proj.weight.mul_(5.0)
    torch.testing.assert_close(model(input_ids=TOKENS).logits, before, rtol=1e-3, atol=1e-4)


def test_only_queries_and_keys_are_touched():
    """With queries and keys that are normal already the model computes what the Llama computed."""
    model = tiny(heads=1, width=8, rms_norm_eps=1e-12)
    with torch.no_grad():
        for layer in model.model.layers:
            # A projection that keeps lengths, after a norm that makes them sqrt(d).
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.copy_(torch.linalg.qr(projection.weight)[0])
    expected = model(input_ids=TOKENS).logits.detach()
    torch.testing.assert_close(qk_norm(model)(input_ids=TOKENS).logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_taken_over_and_groups_know_the_gains(tied):
    model = build(nearest("0.2M"), 64, 16, seed=0, tie=tied)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    count = sum(parameter.numel() for parameter in model.parameters())
    flops = flops_per_token(model)
    normed = qk_norm(model)
    gains = {name for name, _ in normed.named_parameters() if "q_norm" in name or "k_norm" in name}
    assert len(gains) == 2 * 4
    assert all(torch.equal(normed.state_dict()[name], weight) for name, weight in weights.items())
    assert all(torch.equal(normed.get_parameter(name), torch.ones(32)) for name in gains)
    assert sum(parameter.numel() for parameter in normed.parameters()) == count + 4 * 2 * 32
    assert (normed.lm_head.weight is normed.model.embed_tokens.weight) == tied
    assert flops_per_token(normed) == pytest.approx(flops, rel=0.01)
    vectors = next(group for group in parameter_groups(normed) if group["kind"] == "vector")
    assert {id(normed.get_parameter(name)) for name in gains} <= {id(parameter) for parameter in vectors["params"]}
    assert normed.training == model.training


def test_frozen_stays_frozen_and_draws_no_random_numbers():
    model = tiny()
    model.model.embed_tokens.weight.requires_grad_(False)
    state = torch.get_rng_state()
    assert not qk_norm(model).model.embed_tokens.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_saved_loads_anywhere(tmp_path):
    model = qk_norm(tiny(rope_parameters={"rope_type": "default", "rope_theta": 500.0})).eval()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_norm.weight.mul_(2.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)


def test_twice_is_once():
    model = qk_norm(tiny())
    assert QKNorm().install(model) is model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20)), "GPT2LMHeadModel"),
        (lambda: tiny(mlp_bias=True), "without biases"),
        (lambda: torch.nn.Linear(2, 2), "Linear"),
    ],
)
def test_other_models_are_refused(make, said):
    with pytest.raises(ModelError, match=said):
        qk_norm(make())


def test_a_llama_with_biases_in_its_attention():
    model = tiny(attention_bias=True)
    biases = [copy.deepcopy(layer.self_attn.q_proj.bias) for layer in model.model.layers]
    for layer, bias in zip(qk_norm(model).model.layers, biases, strict=True):
        assert torch.equal(layer.self_attn.q_proj.bias, bias)


def test_in_a_run(small, tmp_path):
    """Installed before the optimizer: the gains are trained, and the monitor sees logits below its bound."""
    recipe = small("adamw+linear+qk_norm+instability:every=2", budget="6 steps", training__peak_lr=0.1)
    result = train(recipe, tmp_path / "run", quiet=True)
    model = AutoModelForCausalLM.from_pretrained(result.checkpoint)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    gains = [weight for name, weight in model.named_parameters() if "q_norm" in name]
    assert all((gain - 1.0).abs().max() > 0.01 for gain in gains)
    seen = [line["attention_logit"] for line in Run.open(result.folder).metrics("step") if "attention_logit" in line]
    largest = max(weight.detach().abs().max().item() for name, weight in model.named_parameters() if "_norm" in name)
    assert len(seen) == 3
    assert max(seen) < 32**0.5 * largest**2
