"""Short trainings: the rate, the steps, the precision; and that they leave nothing behind."""

from __future__ import annotations

import time

import pytest
import torch

from thalweg.budget import Budget
from thalweg.errors import BudgetError, TrainingError
from thalweg.models.short_training import ShortTraining, factor, trainable

ROWS = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))


def training(budget="20 steps", peak_lr=0.1, batch=4, seed=0):
    return ShortTraining(Budget.parse(budget), peak_lr, batch, seed)


def quadratic(parameter):
    """Mean squared distance of the parameter from rows."""
    return lambda rows: (parameter - ROWS[rows].to(parameter.dtype)).square().sum(-1).mean()


def test_the_rate_rises_for_a_tenth_and_falls_to_nothing():
    assert [factor(p) for p in (0.0, 0.05, 0.1, 0.55, 1.0, 1.2)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0, 0.0])
    assert factor(0.1 - 1e-12) == pytest.approx(1.0)


def test_steps_are_those_of_adamw():
    """Three steps by the equations, without torch.optim."""
    parameter = torch.zeros(4, requires_grad=True)
    seen = []

    def loss_of(rows):
        seen.append(rows)
        return quadratic(parameter)(rows)

    training("3 steps").run([parameter], loss_of, len(ROWS))
    wanted, m, v = torch.zeros(4), torch.zeros(4), torch.zeros(4)
    for step, rows in enumerate(seen, 1):
        gradient = 2 * (wanted - ROWS[rows].mean(0))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = 0.1 * factor((step - 0.5) / 3)
        wanted = wanted - rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(parameter.detach(), wanted)


def test_rows_come_in_a_seeded_order_and_each_once_a_round():
    def order(seed):
        seen = []
        parameter = torch.zeros(4, requires_grad=True)
        training("5 steps", seed=seed).run([parameter], lambda rows: seen.append(rows) or parameter.sum(), 10)
        return torch.cat(seen).tolist()

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)[:10]) == sorted(order(0)[10:]) == list(range(10))


def test_the_same_whatever_is_held_at_once():
    found = []
    for at_once in (None, 3, 1):
        parameter = torch.zeros(4, requires_grad=True)
        losses = training().run([parameter], quadratic(parameter), len(ROWS), at_once=at_once)
        found.append((parameter.detach(), losses))
    for parameter, losses in found[1:]:
        torch.testing.assert_close(parameter, found[0][0], rtol=1e-4, atol=1e-5)
        assert losses == pytest.approx(found[0][1], rel=1e-5)
    assert len(found[0][1]) == 20
    assert found[0][1][-1] < found[0][1][0]


def test_half_precision_is_trained_in_single():
    """Steps of 1e-4 are less than bfloat16 can tell from 1: summed in it they would be lost."""
    parameter = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    training("200 steps", peak_lr=1e-4).run([parameter], lambda rows: parameter.sum(), len(ROWS))
    assert parameter.dtype == torch.bfloat16
    torch.testing.assert_close(parameter.detach().float(), torch.full((4,), 1 - 0.01), rtol=0, atol=4e-3)


def test_no_gradient_and_no_random_number_is_left():
    parameter, unused = torch.zeros(4, requires_grad=True), torch.ones(2, requires_grad=True)
    parameter.grad = torch.full((4,), 7.0)
    state = torch.random.get_rng_state()
    training().run([parameter, unused], quadratic(parameter), len(ROWS))
    assert torch.equal(parameter.grad, torch.full((4,), 7.0))
    assert torch.equal(unused.detach(), torch.ones(2))
    assert unused.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)


def test_seconds_are_kept():
    parameter, reports = torch.zeros(4, requires_grad=True), []

    def loss_of(rows):
        time.sleep(0.02)
        return quadratic(parameter)(rows)

    start = time.monotonic()
    losses = training("0.5s").run([parameter], loss_of, len(ROWS), report=lambda *said: reports.append(said))
    assert 0.4 < time.monotonic() - start < 1.0
    assert [step for step, _, _ in reports] == list(range(1, len(losses) + 1))
    assert [loss for _, _, loss in reports] == losses
    assert len(losses) <= 25


def test_other_budgets_are_refused():
    with pytest.raises(BudgetError, match="tokens"):
        training("1M tokens")


def test_what_is_not_finite_stops_before_the_step():
    parameter = torch.zeros(4, requires_grad=True)

    def loss_of(rows):
        loss = quadratic(parameter)(rows)
        return loss * float("nan") if float(parameter.detach().abs().max()) > 0.3 else loss

    with pytest.raises(TrainingError, match="lower peak_lr"):
        training().run([parameter], loss_of, len(ROWS))
    assert 0.3 < float(parameter.detach().abs().max()) < 1.0


def test_only_what_is_chosen_requires_gradients():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]

    def interrupted():
        with trainable(model, [model[0].weight]):
            assert [parameter.requires_grad for parameter in model.parameters()] == [True, False, False, False]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [parameter.requires_grad for parameter in model.parameters()] == before
