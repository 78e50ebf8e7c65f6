"""Squashed, perturbed, tuned numbers: the sheet's values, the draws, and Adam with the entropy's slope."""

from __future__ import annotations

import math

import pytest
import torch

from thalweg.methods.optimizers.hyperparameters import Hyperparameters, entropy, seed_of, squash, unsquash

INFINITE = math.inf
RANGES = {"dropout": (0.0, 0.9), "weight_decay": (0.0, INFINITE)}


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.9), (-1.0, 24.0), (0.0, INFINITE), (2.0, INFINITE)])
def test_squashing_and_back(low, high):
    for value in (low + 1e-4, low + 0.05, low + 0.6):
        assert float(squash(torch.tensor(unsquash(value, low, high)).double(), low, high)) == pytest.approx(value)
    wide = squash(torch.tensor([-9.0, 0.0, 9.0], dtype=torch.float64), low, high)
    assert low < wide[0] < wide[1] < wide[2] < high


def test_numbers_of_the_sheet():
    s = unsquash(0.5, 0.0, INFINITE)
    assert s == pytest.approx(-0.4327521, abs=1e-7)
    assert entropy(torch.tensor([s, s], dtype=torch.float64)).item() == pytest.approx(1.4515827, abs=1e-7)


def test_draws_are_those_of_the_seed_and_the_step():
    tuned = Hyperparameters(RANGES, shared=("weight_decay",))
    drawn = tuned.draws(3, 7, 4000)
    assert torch.equal(drawn, tuned.draws(3, 7, 4000))
    assert not torch.equal(drawn, tuned.draws(3, 8, 4000))
    assert not torch.equal(drawn, tuned.draws(4, 7, 4000))
    assert drawn[:, 0].mean().item() == pytest.approx(0.0, abs=0.05)
    assert drawn[:, 0].std().item() == pytest.approx(1.0, abs=0.05)
    # A batch has one decay.
    assert drawn[:, 1].unique().numel() == 1
    assert tuned.perturbations(drawn)[:, 0].std().item() == pytest.approx(0.5, abs=0.03)


def test_values_are_where_they_begin():
    tuned = Hyperparameters(RANGES)
    tuned.begin_at({"dropout": 0.05, "weight_decay": 0.1})
    assert tuned.values() == pytest.approx({"dropout": 0.05, "weight_decay": 0.1}, rel=1e-5)
    assert tuned.at("dropout", torch.tensor([[0.0, 5.0], [1.0, 0.0]])).tolist() == pytest.approx([0.05, 0.12407], 1e-4)


def test_a_step_is_adams():
    tuned = Hyperparameters(RANGES, rate=0.1)
    # Adam's first step is the rate against the sign; zero slope, no step.
    assert tuned.step(torch.tensor([3.0, 0.0]), torch.ones(2)).tolist() == pytest.approx([-0.1, 0.0])
    assert tuned.h.tolist() == pytest.approx([-0.1, 0.0])
    assert torch.nn.functional.softplus(tuned.s).tolist() == pytest.approx([0.5, 0.5])


def test_the_slope_of_the_scales_is_that_of_loss_and_entropy():
    tuned = Hyperparameters(RANGES, tau=0.3)
    s = tuned.s.clone().requires_grad_()
    # F = 2 sigma_0 - sigma_1, so F's slopes by sigma are 2 and -1.
    sigma = torch.nn.functional.softplus(s)
    (2.0 * sigma[0] - sigma[1] - 0.3 * entropy(s)).backward()
    tuned.step(torch.zeros(2), torch.tensor([2.0, -1.0]))
    assert tuned.s.grad.tolist() == pytest.approx(s.grad.tolist())


def test_state_goes_on_where_it_was():
    one, other = (Hyperparameters(RANGES, rate=0.1, tau=0.1) for _ in range(2))
    slopes = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    for slope in slopes[:3]:
        one.step(slope, slope)
    other.load_state_dict(one.state_dict())
    for slope in slopes[3:]:
        one.step(slope, slope)
        other.step(slope, slope)
    assert torch.equal(one.h, other.h)
    assert torch.equal(one.s, other.s)


def test_seeds_of_neighbours_differ():
    assert len({seed_of(seed, step, rank) for seed in range(5) for step in range(5) for rank in range(5)}) == 125
    assert all(0 <= seed_of(seed) < 2**63 for seed in range(50))
