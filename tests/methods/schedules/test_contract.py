"""The contract that every schedule of the catalogue keeps."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg import catalog
from thalweg.budget import Budget
from thalweg.errors import UserError
from thalweg.training.clock import Clock

SCHEDULES = [name for name, card in catalog.load().items() if card.slot == "schedule"]
WITH_WARMUP = [name for name in SCHEDULES if "warmup" in catalog.lookup(name).options]
# What options of free text may say.
TEXTS = {"ends": ("1", "0.25/0.5/1", "0.1/0.2/0.3/1"), "source": ("",)}
UNITS = ["200 steps", "20000 tokens", "2 epochs", "2e6 flops"]


def at(progress):
    return SimpleNamespace(progress=progress, step=0, tokens=0, seconds=0.0, flops=0.0)


def drawn_options(draw, name):
    """Any options inside the card's bounds."""
    options = {}
    for key, option in catalog.lookup(name).options.items():
        if option.type == "float":
            options[key] = draw(st.floats(option.low, option.high))
        elif option.type == "int":
            options[key] = draw(st.integers(int(option.low), int(option.high)))
        elif option.type == "bool":
            options[key] = draw(st.booleans())
        else:
            options[key] = draw(st.sampled_from(option.choices or TEXTS[key]))
    return options


@pytest.mark.parametrize("name", SCHEDULES)
@settings(max_examples=150)
@given(data=st.data())
def test_finite_and_in_range_for_any_options(name, data):
    options = drawn_options(data.draw, name)
    try:
        schedule = catalog.resolve(name)(**options)
    except UserError:
        return  # options that contradict each other may be refused, but only as a user's mistake
    progress = data.draw(st.floats(0.0, 1.0))
    factor = schedule.factor(at(progress))
    assert math.isfinite(factor)
    assert 0.0 <= factor <= 1.0 + 1e-12
    assert math.isfinite(schedule.factor(at(1.0)))


@pytest.mark.parametrize("name", WITH_WARMUP)
def test_warmup_is_linear_and_the_peak_is_reached(name):
    """From 0, or from the `start` of schedules that go on from a run before."""
    schedule = catalog.resolve(name)(warmup=0.25)
    start = getattr(schedule, "start", 0.0)
    factors = [schedule.factor(at(progress)) for progress in (0.0, 0.0625, 0.125, 0.25)]
    assert factors == pytest.approx([start + (1.0 - start) * share for share in (0.0, 0.25, 0.5, 1.0)], abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warmup_the_first_factor_is_the_peak(name):
    options = {"warmup": 0.0} if name in WITH_WARMUP else {}
    assert catalog.resolve(name)(**options).factor(at(0.0)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("budget", UNITS)
def test_same_under_a_clock_of_any_unit(name, budget):
    """200 steps of 100 tokens and 10^4 FLOPs, an epoch of 10^4 tokens: all these budgets are the same run."""
    clock = Clock(Budget.parse(budget), epoch_tokens=10_000)
    schedule = catalog.resolve(name)()
    for step in range(200):
        clock.begin_step(100, 1e4)
        assert schedule.factor(clock) == pytest.approx(schedule.factor(at((step + 1) / 200)), abs=1e-9)
        assert clock.last == (step == 199)
        clock.advance(100, 1e4)
    assert clock.progress == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_works_under_a_clock_of_seconds(name):
    now = Clock(Budget.parse("100s"), started=None, step_seconds=1.0)
    schedule = catalog.resolve(name)()
    now.begin_step(1, 1.0)
    assert 0.0 < now.progress < 0.05
    assert schedule.factor(now) == pytest.approx(schedule.factor(at(now.progress)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_torch_scheduler_gives_the_same_factors(name):
    schedule = catalog.resolve(name)()
    one, two = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [one], "lr": 0.5}, {"params": [two], "lr": 0.2, "lr_scale": 3.0}])
    scheduler = schedule.scheduler(optimizer, 40)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    for step in range(43):
        expected = schedule.factor(at(min((step + 1) / 40, 1.0)))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5 * expected, 0.6 * expected])
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_torch_scheduler_round_trip_mid_run(name):
    def build():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
        return optimizer, catalog.resolve(name)().scheduler(optimizer, 20)

    optimizer, scheduler = build()
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    other_optimizer, other = build()
    other_optimizer.load_state_dict(optimizer.state_dict())
    other.load_state_dict(scheduler.state_dict())
    for _ in range(15):
        for each in (optimizer, scheduler, other_optimizer, other):
            each.step()
        assert optimizer.param_groups[0]["lr"] == other_optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_state_round_trip_mid_run_is_bit_exact(name):
    schedule, other = catalog.resolve(name)(), catalog.resolve(name)()
    for step in range(10):
        schedule.factor(at(step / 20))
    other.load_state_dict(schedule.state_dict())
    assert other.state_dict() == schedule.state_dict()
    for step in range(10, 21):
        assert schedule.factor(at(step / 20)) == other.factor(at(step / 20))


@pytest.mark.parametrize("name", WITH_WARMUP)
def test_bad_warmup_is_a_users_mistake(name):
    for warmup in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="warmup"):
            catalog.resolve(name)(warmup=warmup)
