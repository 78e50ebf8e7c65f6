"""Sharpness of a language model against the Hessian written out."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from thalweg.models.sharpness import sharpness

VOCABULARY = 7


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8,
        initializer_range=0.5,
        tie_word_embeddings=True,
    )
    return hf.LlamaForCausalLM(config).double().train()


@pytest.fixture(scope="module")
def batch():
    tokens = torch.randint(VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))
    targets = tokens[:, 1:].clone()
    targets[0, :4] = -100
    return {"input_ids": tokens[:, :-1], "targets": targets}


@pytest.fixture(scope="module")
def hessian(model, batch):
    names, parameters = zip(*model.named_parameters(), strict=True)

    def loss(flat):
        parts = flat.split([parameter.numel() for parameter in parameters])
        state = {n: part.view_as(p) for n, p, part in zip(names, parameters, parts, strict=True)}
        model.set_attn_implementation("eager")
        logits = torch.func.functional_call(model, state, kwargs={"input_ids": batch["input_ids"]}).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())

    matrix = torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in parameters]))
    model.set_attn_implementation("sdpa")
    return matrix


def test_the_largest_eigenvalues_of_the_hessian(model, batch, hessian):
    drawn = torch.random.get_rng_state()
    found = sharpness(model, batch, count=3, steps=100, tolerance=1e-5)
    # nats_of computes in float32, as all evaluation does.
    expected = torch.linalg.eigvalsh(hessian).flip(0)[:3].tolist()
    assert found.values == pytest.approx(expected, rel=1e-3)
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rates_of_their_own_for_every_parameter(model, batch, hessian):
    generator = torch.Generator().manual_seed(5)
    rates = [torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.1 for p in model.parameters()]
    diagonal = torch.cat([rate.flatten() for rate in rates])
    expected = torch.linalg.eigvals(diagonal[:, None] * hessian).real.max()
    assert sharpness(model, batch, rates, steps=100).values[0] == pytest.approx(float(expected), rel=1e-3)
    alike = sharpness(model, batch, [0.5] * len(rates), steps=100).values[0]
    assert alike == pytest.approx(0.5 * sharpness(model, batch, steps=100).values[0], rel=1e-3)


def test_a_vector_from_before_saves_products(model, batch):
    first = sharpness(model, batch, tolerance=1e-3)
    again = sharpness(model, batch, tolerance=1e-3, start=first.vectors[0])
    assert again.values == pytest.approx(first.values, rel=2e-3)
    assert again.products <= 2 < first.products
