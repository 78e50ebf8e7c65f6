"""The contract of everything in the slot "callbacks" and "reweighting", whatever the family."""

from __future__ import annotations

import json

import pytest
import torch

from thalweg import catalog

CALLBACKS = [name for name, card in catalog.load().items() if card.slot == "callbacks"]
REWEIGHTINGS = [name for name, card in catalog.load().items() if card.slot == "reweighting"]


def parts(name):
    part = catalog.resolve(name)()
    return {"reweighting": part} if name in REWEIGHTINGS else {"callbacks": [part]}


def weights_of(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def plain(value):
    """The value if it can be stored as safetensors and JSON; tensors become lists."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    assert value is None or isinstance(value, bool | int | float | str), type(value)
    return value


@pytest.mark.parametrize("name", CALLBACKS + REWEIGHTINGS)
def test_resumed_run_is_bit_exact(name, trainer_with):
    straight = trainer_with(total_steps=8, **parts(name)).steps(6)
    first = trainer_with(total_steps=8, **parts(name)).steps(3)
    torch.manual_seed(123)  # whatever the process drew in between does not matter
    second = first.resumed(**parts(name)).steps(3)
    assert torch.equal(weights_of(straight), weights_of(second))
    assert straight.loss_history[3:] == second.loss_history
    assert plain(straight.callbacks[0].state_dict()) == plain(second.callbacks[0].state_dict())


@pytest.mark.parametrize("name", CALLBACKS + REWEIGHTINGS)
def test_state_is_tensors_and_plain_data(name, trainer_with):
    trainer = trainer_with(**parts(name)).steps(2)
    state = trainer.callbacks[0].state_dict()
    assert json.loads(json.dumps(plain(state))) == plain(state)


@pytest.mark.parametrize("name", CALLBACKS)
def test_metrics_are_numbers(name, trainer_with):
    trainer = trainer_with(**parts(name)).steps(3)
    for metrics in trainer.metric_history:
        assert all(isinstance(value, float | int) for value in metrics.values()), metrics


@pytest.mark.parametrize("name", CALLBACKS + REWEIGHTINGS)
def test_training_still_learns(name, trainer_with):
    trainer = trainer_with(total_steps=40, **parts(name)).steps(40)
    assert sum(trainer.loss_history[-3:]) / 3 < trainer.loss_history[0] - 0.2


@pytest.mark.parametrize("name", REWEIGHTINGS)
@pytest.mark.parametrize("shape", [(16, 5), (1, 4), (3, 1)])
def test_weights_have_mean_one_and_no_graph(name, shape):
    reweighting = catalog.resolve(name)()
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        losses = torch.rand(shape, generator=generator).requires_grad_()
        weights = reweighting.weights(losses)
        assert weights.shape == losses.shape
        assert not weights.requires_grad
        assert weights.mean().item() == pytest.approx(1.0, abs=1e-6)
        assert (weights >= 0).all()
