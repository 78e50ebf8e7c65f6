"""Measuring for real, once, on the smallest size."""

from __future__ import annotations

import time

import pytest
import torch

from thalweg.models.ladder import nearest
from thalweg.planner.measure import speed
from thalweg.planner.sizes import rung
from thalweg.recipe import Recipe

SMALLEST = rung(nearest("0.2M"), 512)
ARGUMENTS = {"context": 32, "micro_batch": 4, "precision": "float32", "device": torch.device("cpu")}


@pytest.mark.parametrize("arm", ["muon", "adamw+gradient_noise"])
def test_a_measurement_adds_up(arm):
    state = torch.random.get_rng_state()
    began = time.perf_counter()
    found = speed(SMALLEST, Recipe.parse(arm), **ARGUMENTS)
    elapsed = time.perf_counter() - began
    assert 0 < found.micro_batch < 5
    assert 0 < found.optimizer < 5
    assert found.first + found.micro_batch + found.optimizer < found.spent <= elapsed
    assert torch.equal(state, torch.random.get_rng_state())


def test_more_tokens_take_longer():
    # The quickest of a few: a busy machine only makes a measurement longer.
    few = min(speed(SMALLEST, Recipe(), **(ARGUMENTS | {"micro_batch": 1})).micro_batch for _ in range(4))
    many = speed(SMALLEST, Recipe(), **(ARGUMENTS | {"micro_batch": 128})).micro_batch
    assert many > 3 * few


def test_a_slow_warmup_is_all_there_is():
    found = speed(SMALLEST, Recipe(), **ARGUMENTS, most_seconds=0.0)
    assert found.micro_batch == found.first
    assert found.optimizer > 0


def test_an_optimizer_that_looks_twice_gets_a_closure():
    asked = []

    class Twice(torch.optim.SGD):
        second_look = True

        def step(self, closure):
            asked.append(float(closure()))

    class Arm:
        def __init__(self, recipe):
            self.objective, self.optimizer, self.callbacks = recipe.objective, self, ()

        def build(self, groups, lr):
            return Twice(groups, lr=lr)

    speed(SMALLEST, Arm(Recipe()), **ARGUMENTS)
    assert asked == pytest.approx([6.24] * 3, abs=0.8)  # the logarithm of 512 tokens
