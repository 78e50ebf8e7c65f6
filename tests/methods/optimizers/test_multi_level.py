"""The V-cycle: in which order models are trained, and what is mixed with what."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from thalweg.errors import ModelError
from thalweg.methods.optimizers.multi_level import interpolate, v_cycle
from thalweg.models.coalescing import Coalescing


def batch_of(seed):
    """Rows that repeat one token: there is something to learn."""
    tokens = torch.randint(0, 37, (16, 1), generator=torch.Generator().manual_seed(seed)).expand(-1, 13)
    return {"input_ids": tokens[:, :-1], "targets": tokens[:, 1:]}


def test_interpolation():
    model = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    interpolate(model, {"weight": torch.full((2, 2), 0.5)}, 0.5)
    assert model.weight.tolist() == [[0.75, 0.25], [0.25, 0.75]]


def test_order_of_a_cycle_with_three_levels(llama):
    visits = []
    v_cycle(llama(), lambda model, level, leg: visits.append((level, leg, model.config.num_hidden_layers)), levels=3)
    assert visits == [(0, "down", 2), (1, "down", 1), (2, "up", 1), (1, "up", 1), (0, "up", 2)]


def test_one_level_is_training_as_usual(llama):
    visits = []
    v_cycle(llama(), lambda model, level, leg: visits.append((level, leg)), levels=1)
    assert visits == [(0, "up")]


def changed(model, level, leg):
    """As if trained: every weight a little further."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * (level + 1))


def test_mixing(llama):
    """M_1 (1 - alpha) + alpha decoalesce(trained coalesce(M_1)), written out."""
    model, expected = llama(tied=False), llama(tied=False)
    changed(expected, 0, "down")
    way = Coalescing.of(expected.config)
    small = way.small(expected)
    changed(small, 1, "up")
    other = way.decoalesce(dict(small.named_parameters()))
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            parameter.copy_(0.7 * parameter + 0.3 * other[name])
    changed(expected, 0, "up")
    v_cycle(model, changed, alpha=0.3)
    for one, two in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_alpha_zero_leaves_the_large_model_to_itself(llama):
    model, alone = llama(), llama()
    v_cycle(model, changed, alpha=0.0)
    for leg in ("down", "up"):
        changed(alone, 0, leg)
    for one, two in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_cycle_learns(llama):
    def loss_of(model, step):
        batch = batch_of(step)
        return F.cross_entropy(
            model(input_ids=batch["input_ids"], use_cache=False).logits.flatten(0, 1), batch["targets"].flatten()
        )

    def train(model, level, leg):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(15):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()

    model = llama()
    before = loss_of(copy.deepcopy(model), 100).item()
    v_cycle(model, train)
    assert loss_of(model, 100).item() < before - 0.3


def test_mistakes_are_named(llama):
    with pytest.raises(ModelError, match="0 levels"):
        v_cycle(llama(), changed, levels=0)
    with pytest.raises(ModelError, match="alpha"):
        v_cycle(llama(), changed, alpha=1.5)
