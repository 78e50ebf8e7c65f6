"""The torch scheduler of the contract, and the plain schedules in numbers."""

from __future__ import annotations

import pickle

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.schedules import Constant, Cosine, Linear
from thalweg.methods.schedules.base import StepClock


def test_plain_schedules_in_numbers():
    clock = StepClock(0, 0.6)  # half of what follows a warm-up of 0.2
    assert Constant(warmup=0.2).factor(clock) == 1.0
    assert Linear(warmup=0.2).factor(clock) == pytest.approx(0.5)
    assert Linear(warmup=0.2, floor=0.1).factor(clock) == pytest.approx(0.55)
    assert Cosine(warmup=0.2, floor=0.1).factor(clock) == pytest.approx(0.55)
    assert Cosine(warmup=0.2).factor(StepClock(0, 0.4)) == pytest.approx(0.5 + 0.5 * 2**-0.5)
    assert Linear().factor(StepClock(0, 1.0)) == 0.0
    assert Cosine().factor(StepClock(0, 1.0)) == pytest.approx(0.0, abs=1e-15)


def test_progress_outside_the_run_is_clamped():
    assert Linear().factor(StepClock(0, 1.5)) == 0.0
    assert Linear().factor(StepClock(0, -1.0)) == 0.0


def test_scheduler_state_holds_no_objects():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    state = Linear().scheduler(optimizer, 10).state_dict()
    assert "schedule" not in state
    assert pickle.loads(pickle.dumps(state)) == state  # what transformers.Trainer does with it


def test_scheduler_needs_a_step():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    with pytest.raises(RecipeError, match="total_steps"):
        Linear().scheduler(optimizer, 0)


def test_state_of_another_schedule_is_refused():
    with pytest.raises(RecipeError, match="keeps none"):
        Linear().load_state_dict({"best": 1.0})
