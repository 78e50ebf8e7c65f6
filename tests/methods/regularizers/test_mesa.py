"""MESA's average by hand, its penalty, and that it leaves training alone until it begins."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from thalweg.errors import RecipeError
from thalweg.methods.regularizers import MESA
from thalweg.methods.regularizers.trajectory import trajectory_loss
from thalweg.runs import Run
from thalweg.sessions.train import train


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_the_average_is_the_sum_of_steps_it_lags_behind(trainer_with):
    """v_t = w_t + sum_i beta^(t - i) step_i, with step_i what the optimizer subtracted."""
    mesa = MESA(coefficient=0.0, beta=0.9)
    trainer = trainer_with(callbacks=[mesa])
    path = [weights(trainer).double()]
    for _ in range(5):
        path.append(weights(trainer.steps(1)).double())
    steps = [one - two for one, two in itertools.pairwise(path)]
    expected = path[-1] + sum(0.9 ** (5 - index) * step for index, step in enumerate(steps))
    average = torch.cat([parameter.flatten() for parameter in mesa.average.parameters()]).double()
    torch.testing.assert_close(average, expected, atol=1e-6, rtol=0)


def test_worked_average():
    """From 1, rate 0.1, gradients 0.5, -0.2, 0.3, beta 0.9: 0.98725, by steps and as the sum that it lags behind."""
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    mesa = MESA(beta=0.9)
    trainer = SimpleNamespace(model=torch.nn.ParameterList([parameter]), metrics={})
    mesa.average = copy.deepcopy(trainer.model).requires_grad_(False)
    gradients = (0.5, -0.2, 0.3)
    for gradient in gradients:
        with torch.no_grad():
            parameter -= 0.1 * gradient
        mesa.step(trainer)
    assert mesa.average[0].item() == pytest.approx(0.98725, abs=1e-12)
    lag = sum(0.9 ** (3 - index) * 0.1 * gradient for index, gradient in enumerate(gradients))
    assert parameter.item() + lag == pytest.approx(0.98725, abs=1e-12)


def test_loss_is_cross_entropy_plus_the_distance_from_the_average(trainer_with, batch_of):
    mesa = MESA(coefficient=0.7, temperature=3.0, start=0.0, beta=0.5)
    trainer = trainer_with(callbacks=[mesa]).steps(3)
    batch = batch_of(3)
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], use_cache=False).logits
        past = mesa.average(input_ids=batch["input_ids"], use_cache=False).logits
        plain = functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        penalty = 0.7 * trajectory_loss(logits, past, 3.0).mean()
    trainer.steps(1)
    assert penalty > 1e-4
    assert trainer.loss_history[-1] == pytest.approx((plain + penalty).item(), rel=1e-6)
    assert trainer.metric_history[-1]["mesa"] == pytest.approx(penalty.item(), rel=1e-5)


@pytest.mark.parametrize("options", [{"coefficient": 0.0}, {"start": 1.0}])
def test_left_alone_training_is_the_same_bit_for_bit(trainer_with, options):
    plain, with_mesa = trainer_with().steps(6), trainer_with(callbacks=[MESA(**options)]).steps(6)
    assert plain.loss_history == with_mesa.loss_history
    assert torch.equal(weights(plain), weights(with_mesa))
    assert "mesa" not in with_mesa.metric_history[-1]


def test_begins_where_it_is_told_to(trainer_with):
    trainer = trainer_with(total_steps=8, callbacks=[MESA(start=0.5)]).steps(8)
    assert ["mesa" in metrics for metrics in trainer.metric_history] == [False] * 4 + [True] * 4


def test_the_average_is_not_trained_and_not_of_the_objective(trainer_with):
    mesa = MESA(start=0.0)
    trainer = trainer_with(callbacks=[mesa]).steps(2)
    assert not any(parameter.requires_grad for parameter in mesa.average.parameters())
    assert not mesa.average.training
    assert trainer.objective.state_dict() == {}
    assert len(list(trainer.objective.parameters())) == 0


def test_state_may_come_before_setup(trainer_with):
    old = MESA()
    trainer_with(callbacks=[old]).steps(3)
    new = MESA()
    new.load_state_dict(old.state_dict())
    trainer_with(callbacks=[new])
    for one, two in zip(old.average.parameters(), new.average.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("options", [{"beta": 1.0}, {"coefficient": -0.1}, {"temperature": 0.0}, {"start": 1.5}])
def test_mistakes_are_named(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        MESA(**options)


def test_in_a_run_with_micro_batches_it_is_the_same_loss(small, tmp_path):
    """Through hidden states, chunk by chunk, with several passes a step; the plain run differs."""
    told = {}
    for name, arm, micro in (("one", "+mesa:start=0.0", 8), ("four", "+mesa:start=0.0", 2), ("plain", "", 8)):
        recipe = small(
            f"adamw+linear{arm}", budget="5 steps", training__micro_batch=micro, training__precision="float32"
        )
        folder = train(recipe, tmp_path / name, quiet=True, show=False).folder
        told[name] = [line["loss"] for line in Run.open(folder).metrics("step")]
    assert told["four"] == pytest.approx(told["one"], rel=1e-5)
    assert told["plain"][0] == pytest.approx(told["one"][0], rel=1e-6)
    assert told["one"][-1] > told["plain"][-1] + 1e-5
