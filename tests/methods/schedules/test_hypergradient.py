"""Hypergradient descent against the sheet's numbers, against autograd, and in the trainer."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.schedules import Hypergradient
from thalweg.methods.schedules.base import StepClock
from thalweg.runs import Run
from thalweg.sessions import train as session

NOW = StepClock(0, 0.5)


def additive(beta, **options):
    return Hypergradient(warmup=0.0, rule="additive", beta=beta, low=1e-6, high=1e6, **options)


def trained(schedule, loss, theta, peak, steps, make=None):
    """[(alpha_t, theta_{t+1})] of a loop as the docstring shows it."""
    theta = torch.nn.Parameter(torch.tensor(theta, dtype=torch.float64))
    optimizer = (make or (lambda p: torch.optim.SGD(p, lr=peak)))([theta])
    told = []
    for _ in range(steps):
        loss(theta).backward()
        schedule.observe(schedule.measure(optimizer))
        optimizer.param_groups[0]["lr"] = peak * schedule.factor(NOW)
        optimizer.step()
        optimizer.zero_grad()
        told.append((optimizer.param_groups[0]["lr"], theta.detach().clone()))
    return told


def half_square(theta):
    return 0.5 * theta.square().sum()


def test_growing_rate_oracle():
    told = trained(additive(0.1), half_square, [1.0], 0.1, 5)
    expected = [(0.1, 0.9), (0.19, 0.729), (0.25561, 0.54266), (0.29517, 0.382483), (0.315926, 0.261647)]
    for (rate, theta), (alpha, place) in zip(told, expected, strict=True):
        assert rate == pytest.approx(alpha, abs=1e-6)
        assert theta.item() == pytest.approx(place, abs=1e-6)


def test_overshooting_rate_oracle():
    rates = [rate for rate, _ in trained(additive(0.1), half_square, [1.0], 1.5, 4)]
    assert rates == pytest.approx([1.5, 1.45, 1.43875, 1.436529], abs=1e-6)


def test_two_dimensions_oracle_and_autograd():
    h = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)

    def loss(theta):
        return 0.5 * theta @ h @ theta

    start = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(start), start)
    alpha = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(loss(start.detach() - alpha * slope), alpha)
    assert derivative.item() == pytest.approx(-2.975)
    schedule = additive(0.01)
    told = trained(schedule, loss, [1.0, -2.0], 0.1, 3)
    assert [rate for rate, _ in told] == pytest.approx([0.1, 0.12975, 0.154066], abs=1e-6)
    assert told[-1][1].tolist() == pytest.approx([0.672651, -1.471898], abs=1e-6)
    assert (told[1][0] - told[0][0]) / 0.01 == pytest.approx(-derivative.item())


def test_normalised_rule_grows_by_beta_while_signs_agree():
    schedule = Hypergradient(warmup=0.0, beta=0.1)
    rates = [rate for rate, _ in trained(schedule, half_square, [1.0], 1e-4, 30)]
    assert rates == pytest.approx([1e-4 * 1.1**step for step in range(30)], rel=1e-9)
    shrinking = [rate for rate, _ in trained(Hypergradient(warmup=0.0, beta=0.1), half_square, [1.0], 1.9, 4)]
    assert shrinking == pytest.approx([1.9 * 0.9**step for step in range(4)], rel=1e-9)


def test_normalised_rule_does_not_know_the_unit_of_the_loss():
    one = [rate for rate, _ in trained(Hypergradient(warmup=0.0), half_square, [1.0, -3.0], 0.1, 20)]
    big = trained(Hypergradient(warmup=0.0), lambda t: 1000.0 * half_square(t), [1.0, -3.0], 1e-4, 20)
    assert [rate * 1000.0 for rate, _ in big] == pytest.approx(one, rel=1e-9)


def test_orthogonal_gradients_leave_the_rate():
    turns = iter([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, -1.0]])
    for schedule in (additive(0.1), Hypergradient(warmup=0.0, beta=0.1)):
        turns = iter([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, -1.0]])
        told = trained(schedule, lambda t, turns=turns: (t * torch.tensor(next(turns))).sum(), [0.0, 0.0], 0.1, 4)
        assert [rate for rate, _ in told] == [0.1] * 4


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.1)]
)
def test_beta_zero_is_the_optimizer_itself(make):
    def loss(theta):
        return (theta.square().square() - theta).sum()

    told = trained(Hypergradient(warmup=0.0, beta=0.0), loss, [1.0, -0.3], 0.1, 25, make)
    theta = torch.nn.Parameter(torch.tensor([1.0, -0.3], dtype=torch.float64))
    optimizer = make([theta])
    for _, there in told:
        loss(theta).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(theta, there)


def test_adam_is_the_rule_written_out():
    """h = g . m_hat / (sqrt(v_hat) + eps) with the moments before they take in g."""
    told = trained(additive(1e-3), half_square, [1.0, -0.2], 0.01, 12, lambda p: torch.optim.Adam(p, lr=0.01))
    theta = torch.tensor([1.0, -0.2], dtype=torch.float64)
    m, v, alpha, direction = torch.zeros(2), torch.zeros(2), 0.01, None
    for step, (rate, there) in enumerate(told, 1):
        slope = theta.clone()
        if direction is not None:
            alpha += 1e-3 * float(slope @ direction)
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope.square()
        direction = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        theta = theta - alpha * direction
        assert rate == pytest.approx(alpha, rel=1e-9)
        assert torch.allclose(theta, there, rtol=1e-9)


def test_groups_with_scales_are_one_rate():
    """Two groups, one at twice the rate: as if its direction were twice as long."""
    one, two = (torch.nn.Parameter(torch.tensor([value], dtype=torch.float64)) for value in (1.0, 2.0))
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [two], "lr_scale": 2.0}], lr=0.1)
    schedule, rates = additive(0.01), []
    for _ in range(2):
        (half_square(one) + half_square(two)).backward()
        schedule.observe(schedule.measure(optimizer))
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * schedule.factor(NOW) * group.get("lr_scale", 1.0)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.zero_grad()
    # g_1 = (0.9, 1.6), u_0 = (1, 2 * 2).
    assert rates == pytest.approx([0.1, 0.1 + 0.01 * (0.9 * 1.0 + 1.6 * 4.0)], rel=1e-9)


def test_bounds_hold_and_broken_numbers_are_passed_over():
    schedule = Hypergradient(warmup=0.0, beta=0.5, low=0.5, high=2.0)
    for _ in range(5):
        schedule.observe({"cosine": 1.0})
    assert schedule.factor(NOW) == 2.0
    for _ in range(9):
        schedule.observe({"cosine": -1.0})
    assert schedule.factor(NOW) == 0.5
    for metrics in ({"cosine": math.nan}, {}, {"hypergradient": 9.0}):
        schedule.observe(metrics)
        assert schedule.factor(NOW) == 0.5


def test_state_round_trip_mid_run():
    def loss(theta):
        return (theta.square().square() - theta).sum()

    theta = torch.nn.Parameter(torch.tensor([1.0, -0.3]))
    optimizer, schedule = torch.optim.Adam([theta], lr=0.05), Hypergradient(warmup=0.0)

    def steps(theta, optimizer, schedule, count):
        for _ in range(count):
            loss(theta).backward()
            schedule.observe(schedule.measure(optimizer))
            optimizer.param_groups[0]["lr"] = 0.05 * schedule.factor(NOW)
            optimizer.step()
            optimizer.zero_grad()

    steps(theta, optimizer, schedule, 7)
    other = torch.nn.Parameter(theta.detach().clone())
    other_optimizer, other_schedule = torch.optim.Adam([other], lr=0.05), Hypergradient(warmup=0.0)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_schedule.load_state_dict(schedule.state_dict())
    for pair in ((theta, optimizer, schedule), (other, other_optimizer, other_schedule)):
        steps(*pair, 7)
    assert schedule.rate == other_schedule.rate != 1.0
    assert torch.equal(theta, other)


@pytest.mark.parametrize("wrong", [{"rule": "loud"}, {"beta": -1.0}, {"beta": math.nan}, {"low": 0.0}, {"high": 0.5}])
def test_mistakes_are_named(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Hypergradient(**wrong)


# -- in the trainer -----------------------------------------------------------------------------------------------


def lines(run):
    return [(line["step"], line["loss"], line["lr"]) for line in Run.open(run.folder).metrics("step")]


def test_a_stopped_run_goes_on_bit_for_bit(small, whole_and_resumed):
    whole, resumed = whole_and_resumed(small("adamw+hypergradient:warmup=0.2,beta=0.1"), 7)
    rates = [rate for *_, rate in lines(whole)]
    assert rates[:2] == pytest.approx([0.005 * (step + 1) / 12 / 0.2 for step in range(2)])
    assert rates[2] == 0.005
    assert len(set(rates[2:])) == 10
    assert lines(resumed) == lines(whole)


def test_beta_zero_trains_as_constant_does(small, tmp_path):
    still = session.train(small("adamw+hypergradient:beta=0.0"), tmp_path / "still", quiet=True, show=False)
    constant = session.train(small("adamw+constant"), tmp_path / "constant", quiet=True, show=False)
    assert lines(still) == lines(constant)


def test_sharded_weights_are_refused(small, tmp_path):
    with pytest.raises(RecipeError, match="hypergradient keeps copies"):
        session.train(small("hypergradient", training__shard=True), tmp_path / "run", quiet=True, show=False)
