"""The annealing law on the screen: where a run whose schedule is known ends, in milliseconds or not at all."""

from __future__ import annotations

import time

import numpy as np
import pytest

from thalweg.laws.annealing_live import forecast
from thalweg.laws.lr_annealing import AnnealingLaw
from thalweg.laws.power_curve import forecast as power_forecast

T, W = 2000, 100
STEP = np.arange(1, T + 1)
_LATE = np.clip((STEP - W) / (T - W), 0, 1)
_RISE = np.minimum(STEP / W, 1)
SCHEDULES = {
    "cosine": 0.01 * _RISE * 0.5 * (1 + np.cos(np.pi * _LATE)),
    "linear": 0.01 * _RISE * (1 - _LATE),
    "wsd": 0.01 * _RISE * np.clip((1 - STEP / T) / 0.4, 0, 1),
}
TRUTH = AnnealingLaw(1.6, 2.2, 0.45, 0.35, momentum=0.99)


def seen(name, share, seed=0, noise=0.04):
    losses = TRUTH.predict(SCHEDULES[name], warmup=W - 1)
    count = int(share * T)
    noisy = losses * np.exp(noise * np.random.default_rng(seed).normal(size=T))
    return STEP[:count], noisy[:count], losses[-1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_end_is_in_the_interval_and_near(name):
    found = []
    for seed in range(20):
        steps, losses, truth = seen(name, 0.85, seed)
        one = forecast(steps, losses, SCHEDULES[name])
        assert one is not None
        assert one.step == T
        found.append((one.low <= truth <= one.high, abs(one.value / truth - 1)))
    inside, errors = np.array(found).T
    assert inside.sum() >= 17
    assert errors.mean() < 0.03


def test_a_decay_to_come_is_foreseen_once_it_has_begun():
    """The power curve does not know that the rate will go on falling."""
    here, there = [], []
    for seed in range(10):
        steps, losses, truth = seen("wsd", 0.85, seed)
        here.append(abs(forecast(steps, losses, SCHEDULES["wsd"]).value / truth - 1))
        there.append(power_forecast(steps, losses, T).value / truth - 1)
    assert np.mean(here) < 0.035
    assert min(there) > 0.08


@pytest.mark.parametrize(
    ("steps", "losses", "rates"),
    [
        ([], [], SCHEDULES["cosine"]),
        (*seen("wsd", 0.55)[:2], SCHEDULES["wsd"]),
        (*seen("cosine", 0.15)[:2], SCHEDULES["cosine"]),
        (STEP[:1800], np.linspace(2.0, 4.0, 1800), SCHEDULES["cosine"]),
        (STEP[1000:1800], seen("cosine", 0.9)[1][1000:], SCHEDULES["cosine"]),
        (STEP[:1800], np.full(1800, np.nan), SCHEDULES["cosine"]),
        (*seen("cosine", 0.9)[:2], SCHEDULES["cosine"][:1000]),
        (*seen("cosine", 0.9)[:2], np.zeros(T)),
    ],
    ids=["empty", "trunk", "early", "rising", "narrow", "nan", "unplanned", "no rate"],
)
def test_is_silent_where_nothing_is_identified(steps, losses, rates):
    assert forecast(steps, losses, rates) is None


def test_fast_enough_for_a_live_line():
    steps, losses, _ = seen("cosine", 0.85)
    steps, losses = steps.tolist(), losses.tolist()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        forecast(steps, losses, SCHEDULES["cosine"])
        times.append(time.perf_counter() - began)
    assert min(times) < 0.02
