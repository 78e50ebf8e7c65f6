"""The forecast of the live line: by the annealing law where the schedule's future is known, else by the power curve."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from thalweg import catalog
from thalweg.laws.lr_annealing import AnnealingLaw
from thalweg.training.callbacks.live import LiveLine
from thalweg.training.planned import is_closed_form, planned_factors

T, SEEN, PEAK = 1000, 850, 0.01
TRUTH = AnnealingLaw(1.6, 2.2, 0.45, 0.7, momentum=0.98)


def line_and_trainer(schedule, start=None):
    factors = [schedule.factor(SimpleNamespace(progress=(step + 1) / T)) for step in range(T)]
    rates = PEAK * np.array(factors)
    losses = TRUTH.predict(rates, warmup=49)
    noise = np.random.default_rng(0).normal(size=T)
    line = LiveLine(bytes_per_token=1.4426950408889634)
    for step in range(SEEN):
        line._note({"step": step + 1, "loss": float(losses[step] * np.exp(0.02 * noise[step])), "lr": rates[step]})
    trainer = SimpleNamespace(
        schedule=schedule,
        recipe=SimpleNamespace(start=start),
        clock=SimpleNamespace(progress=SEEN / T, step_seconds=0.1),
        plan={"peak_lr": PEAK},
        lr_scale=1.0,
        step_tokens=1024,
        step_flops=1e9,
    )
    return line, trainer, rates, losses[-1]


def foretold(line):
    words = line.forecast_text.split()
    return float(words[2])


def wsd():
    return catalog.resolve("wsd")(decay=0.4)


def test_the_schedules_future_is_known():
    line, trainer, rates, _ = line_and_trainer(wsd())
    assert line._planned(trainer, T) == pytest.approx(rates, abs=1e-4 * PEAK)
    assert len(line._planned(trainer, SEEN)) == SEEN
    trainer.lr_scale = 0.5  # the safeguard has halved the rate
    assert line._planned(trainer, T)[SEEN:] == pytest.approx(0.5 * rates[SEEN:], abs=1e-4 * PEAK)


def test_the_law_sees_the_rest_of_the_decay_and_the_power_curve_does_not():
    line, trainer, _, truth = line_and_trainer(wsd())
    line._forecast(trainer, 0.0)
    assert foretold(line) == pytest.approx(truth, rel=0.03)
    continued, trainer, _, truth = line_and_trainer(wsd(), start=SimpleNamespace(run="runs/a"))
    continued._forecast(trainer, 0.0)
    assert foretold(continued) > 1.04 * truth


def test_a_schedule_that_decides_while_it_trains_has_no_known_future():
    schedule = wsd()
    schedule.observe = lambda metrics: None
    assert not is_closed_form(schedule)
    line, trainer, _, truth = line_and_trainer(schedule)
    assert line._planned(trainer, T) is None
    line._forecast(trainer, 0.0)
    assert foretold(line) > 1.04 * truth


def test_forecasts_keep_their_distance():
    line, trainer, _, _ = line_and_trainer(wsd())
    line._forecast(trainer, 0.0)
    first, line.forecast_text = line.forecast_text, ""
    line._forecast(trainer, 1.9)
    assert line.forecast_text == ""
    line._forecast(trainer, 1e9)
    assert line.forecast_text == first


def test_planned_factors_meet_the_schedule_where_it_is_asked():
    schedule = catalog.resolve("cosine")()
    costs = (1024.0, 0.1, 1e9)
    every = planned_factors(schedule, 0, 500, costs, points=500)
    direct = [schedule.factor(SimpleNamespace(progress=(step + 1) / 500)) for step in range(500)]
    assert every.tolist() == direct
    assert planned_factors(schedule, 300, 500, costs, points=50) == pytest.approx(direct[300:], abs=1e-3)
    assert planned_factors(schedule, 499, 500, costs, points=50) == pytest.approx([0.0], abs=1e-12)
