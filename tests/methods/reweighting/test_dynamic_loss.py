"""Dynamic loss reweighting against the numbers of its sheet."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.reweighting import DynamicLoss
from thalweg.methods.reweighting.dynamic_loss import STRATEGIES, sequence_weights

LOSSES = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("strategy", "r", "expected"),
    [
        ("lin_upper", 1.0, [0.155362, 0.422319, 0.422319]),
        ("quadratic", 1.0, [0.211942, 0.576117, 0.211942]),
        ("extremes", 1.0, [0.422319, 0.155362, 0.422319]),
        ("upper", 1.0, [0.186324, 0.307196, 0.506480]),
        ("uniform", 1.0, [1 / 3, 1 / 3, 1 / 3]),
        ("lin_upper", 0.4, [0.039424, 0.480288, 0.480288]),
    ],
)
def test_oracles_of_the_sheet(strategy, r, expected):
    assert sequence_weights(LOSSES, strategy, r).tolist() == pytest.approx(expected, abs=1e-6)


def test_weighted_loss_of_the_sheet():
    assert (sequence_weights(LOSSES) * LOSSES).sum().item() == pytest.approx(2.266956, abs=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shift_and_scale_do_not_matter(strategy):
    losses = torch.rand(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(sequence_weights(losses, strategy), sequence_weights(5 * losses + 3, strategy))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("r", [0.4, 1.0, 100.0])
def test_ratio_is_bounded_by_the_temperature(strategy, r):
    weights = sequence_weights(torch.linspace(0, 1, 17), strategy, r)
    ratio = (weights.max() / weights.min()).item()
    assert ratio == pytest.approx(1.0 if strategy == "uniform" else math.exp(1 / r), rel=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("value", [0.1, 3.3333333, 1e4])
def test_equal_losses_and_high_temperature_are_uniform(strategy, value):
    equal = sequence_weights(torch.full((16,), value), strategy)
    torch.testing.assert_close(equal, torch.full((16,), 1 / 16))
    hot = sequence_weights(torch.rand(16, generator=torch.Generator().manual_seed(0)), strategy, r=1e6)
    torch.testing.assert_close(hot, torch.full((16,), 1 / 16), rtol=2e-6, atol=0)


def test_one_weight_a_sequence_from_the_mean_of_its_valid_tokens():
    losses = torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0], [2.0, 4.0, 0.0, 3.0]], requires_grad=True)
    weights = DynamicLoss(burn_in=0.0).weights(losses)
    expected = 3 * sequence_weights(torch.tensor([1.0, 4.0, 3.0]))
    torch.testing.assert_close(weights, expected.unsqueeze(1).expand(3, 4))


def test_gradient_is_that_of_constant_weights():
    losses = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = DynamicLoss(burn_in=0.0).weights(losses)
    (weights * losses).mean().backward()
    torch.testing.assert_close(losses.grad, weights / 12)


def test_burn_in_ends_with_its_share_of_the_budget():
    reweighting = DynamicLoss(burn_in=0.3)
    losses = torch.arange(1.0, 9.0).view(4, 2)
    plain = []
    for step in range(10):
        plain.append(torch.equal(reweighting.weights(losses), torch.ones(4, 2)))
        reweighting.step(SimpleNamespace(clock=SimpleNamespace(progress=(step + 1) / 10)))
    assert plain == [True] * 3 + [False] * 7
    resumed = DynamicLoss(burn_in=0.3)
    resumed.load_state_dict(reweighting.state_dict())
    assert torch.equal(resumed.weights(losses), reweighting.weights(losses))


@pytest.mark.parametrize(
    ("options", "said"), [({"strategy": "hard"}, "strategy"), ({"r": 0.0}, "r ="), ({"burn_in": 1.5}, "burn_in")]
)
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        DynamicLoss(**options)
