"""The decay of a step against the sheet's number, under any rate, and through every kind of group."""

from __future__ import annotations

import math

import pytest
import torch

from thalweg import catalog
from thalweg.errors import RecipeError
from thalweg.methods.optimizers import SAM, AdamW, Muon
from thalweg.methods.regularizers import IndependentWeightDecay
from thalweg.methods.regularizers.independent_weight_decay import independent_weight_decay
from thalweg.models.parameter_groups import parameter_groups
from thalweg.recipe import Recipe
from thalweg.runs import Run
from thalweg.sessions.train import train


@pytest.mark.parametrize("method", [AdamW, torch.optim.AdamW])
def test_worked_example(method):
    """Theta 2, direction 0.5, lambda 1e-4, peak rate 0.01 at half of the schedule: 1.9974."""
    parameter = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = method([parameter], lr=0.01, weight_decay=0.3, eps=1.0)
    independent_weight_decay(optimizer, peak_lr=0.01, decay=1e-4)
    optimizer.param_groups[0]["lr"] = 0.5 * 0.01
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert parameter.item() == pytest.approx(2 - 0.5 * (0.01 * 0.5 + 1e-4 * 2), abs=1e-12)
    assert parameter.item() == pytest.approx(1.9974, abs=1e-12)


@pytest.mark.parametrize("method", [AdamW, Muon, SAM])
@pytest.mark.parametrize("peak", [1e-4, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_the_rate_does_not_act_on_the_decay(method, peak, share):
    """A step with and without decay differ by share * lambda of the weight, at any peak rate."""
    start = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for decay in (0.0, 1e-3):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = method([parameter], lr=peak)
        independent_weight_decay(optimizer, peak, decay)
        optimizer.param_groups[0]["lr"] = share * peak

        def closure(parameter=parameter, optimizer=optimizer):
            optimizer.zero_grad()
            (parameter * torch.arange(4)).sum().backward()

        closure()
        optimizer.step(closure if method is SAM else None)
        ends.append(parameter.detach())
    torch.testing.assert_close(ends[0] - ends[1], share * 1e-3 * start, rtol=1e-9, atol=1e-12)


def test_small_decays_are_not_lost_in_bfloat16():
    """A thousandth of a thousandth a step is far below what eight bits hold; the master keeps it."""
    parameter = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = AdamW([parameter], lr=0.01)
    independent_weight_decay(optimizer, 0.01, 1e-4)
    for _ in range(200):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert optimizer.state[parameter]["master"][0, 0].item() == pytest.approx((1 - 1e-4) ** 200, rel=1e-5)


def test_kinds_and_scales_of_groups(llama):
    groups = parameter_groups(llama(tied=False), weight_decay=0.0, lr_scale={"matrix": 0.5})
    optimizer = AdamW(groups, lr=0.01)
    independent_weight_decay(optimizer, 0.01, 1e-3)
    found = {group["kind"]: group["weight_decay"] for group in optimizer.param_groups}
    assert found == pytest.approx({"matrix": 0.2, "head": 0.1, "embedding": 0.0, "vector": 0.0})


def test_an_optimizer_without_decay_is_refused():
    class Plain(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

    with pytest.raises(RecipeError, match="Plain has no weight decay"):
        independent_weight_decay(Plain([torch.nn.Parameter(torch.ones(2))]), 0.1)


@pytest.mark.parametrize("decay", [-1e-4, math.nan, math.inf])
def test_mistakes_are_named(decay):
    with pytest.raises(RecipeError, match="decay"):
        IndependentWeightDecay(decay)


def test_it_goes_with_every_optimizer_of_the_catalogue():
    for name, card in catalog.load().items():
        if card.slot == "optimizer":
            optimizer = catalog.resolve(name)([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, weight_decay=0.3)
            independent_weight_decay(optimizer, 0.1, 1e-3)
            assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.01)


def test_in_a_run_the_plans_decay_gives_way(small, tmp_path):
    """Equal to a run whose plan has the decay that it comes to."""
    told = {}
    arms = {"independent": ("+independent_weight_decay:decay=0.001", 0.5), "same": ("", 0.2)}
    for name, (arm, decay) in arms.items():
        recipe: Recipe = small(f"adamw+linear{arm}", budget="5 steps", training__weight_decay=decay)
        folder = train(recipe, tmp_path / name, quiet=True, show=False).folder
        told[name] = [line["loss"] for line in Run.open(folder).metrics("step")]
    assert told["independent"] == told["same"]
