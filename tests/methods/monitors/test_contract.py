"""The contract that every monitor keeps: it looks and does not touch."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from thalweg import catalog

MONITORS = [name for name, card in catalog.load().items() if card.family == "monitors"]
pytestmark = pytest.mark.parametrize("name", MONITORS)


def measure_of(name):
    module = catalog.lookup(name).object.split(":")[0]
    return importlib.import_module(f"thalweg.methods.monitors.{module}").measure


def test_model_mode_and_random_state_stay(name, llama, batch_of):
    model = llama(dropout=0.5).train()
    model.model.layers[1].eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first = measure_of(name)(model, batch_of(0))
    second = measure_of(name)(model, batch_of(0))
    assert first == second
    assert all(isinstance(value, float) and math.isfinite(value) for value in first.values())
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_trajectory_is_the_same_with_and_without(name, trainer_with):
    monitor = catalog.resolve(name)(every=2)
    seen, unseen = trainer_with(callbacks=[monitor]).steps(5), trainer_with().steps(5)
    assert seen.loss_history == unseen.loss_history
    for one, two in zip(seen.parameters, unseen.parameters, strict=True):
        assert torch.equal(one, two)


def test_measures_every_so_many_steps(name, trainer_with):
    trainer = trainer_with(callbacks=[catalog.resolve(name)(every=2)]).steps(5)
    assert [bool(metrics) for metrics in trainer.metric_history] == [False, True, False, True, False]
