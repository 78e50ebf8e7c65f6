"""The power schedule against the numbers of its sheet (a = 4.6, b = -0.51, peak 0.02) and its invariances."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from thalweg.budget import Budget
from thalweg.errors import RecipeError
from thalweg.methods.schedules import WSD, Power
from thalweg.methods.schedules.base import StepClock
from thalweg.training.clock import Clock

TOKENS = [1e8, 1e9, 1e10, 1e11, 1e12]
ORACLE = {
    32: (3.820e7, [0.012244, 0.003784, 0.001169, 0.000361, 0.000112]),
    128: (5.789e8, [0.02, 0.015134, 0.004677, 0.001445, 0.000447]),
    512: (8.773e9, [0.02, 0.02, 0.018708, 0.005781, 0.001787]),
    1024: (3.415e10, [0.02, 0.02, 0.02, 0.011563, 0.003573]),
}
# The cap ends after 6.5 steps of 64 tokens: the law rules nearly all of a run of 100 steps.
SMALL = {"a": 0.0027, "peak_lr": 0.001, "batch_size": 8, "context": 8}


def in_steps(schedule, total, steps=None):
    clocks = [StepClock(step=s, progress=(s + 1) / total) for s in range(total)]
    return [schedule.factor(clock) for clock in (clocks if steps is None else clocks[steps])]


@pytest.mark.parametrize("batch_size", ORACLE)
def test_oracle(batch_size):
    cap_end, rates = ORACLE[batch_size]
    schedule = Power(warmup=0.0, decay=0.0, batch_size=batch_size, context=1)
    seen = [0.02 * schedule.factor(StepClock(0, 0.5, tokens=int(n) - batch_size)) for n in TOKENS]
    assert seen == pytest.approx(rates, abs=1e-6)
    assert schedule.law(cap_end * 0.999) == 1.0
    assert schedule.law(cap_end * 1.001) == pytest.approx(1.0, abs=2e-3)
    assert schedule.law(cap_end * 1.001) < 1.0


def test_tokens_and_batch_size_move_the_rate_as_the_law_says():
    schedule = Power(batch_size=32)
    assert schedule.law(1e11) / schedule.law(1e10) == pytest.approx(0.30903, abs=1e-5)
    assert schedule.law(4e10) / schedule.law(1e10) == pytest.approx(0.49312, abs=1e-5)
    assert Power(batch_size=64).law(1e10) == pytest.approx(2 * schedule.law(1e10))


def test_no_exponent_is_wsd():
    """b = 0 and an amplitude above the peak: the cap holds to the end."""
    power, wsd = Power(b=0.0, decay=0.2, shape="linear"), WSD(decay=0.2)
    assert in_steps(power, 50) == pytest.approx(in_steps(wsd, 50), abs=1e-12)


def test_minus_half_is_inverse_square_root():
    schedule = Power(warmup=0.0, decay=0.0, b=-0.5, peak_lr=1e6)
    assert schedule.law(4e9) / schedule.law(1e9) == pytest.approx(0.5)
    seen = in_steps(schedule, 100)
    assert [value / seen[0] for value in seen] == pytest.approx([(s + 1) ** -0.5 for s in range(100)])


def test_trunk_does_not_depend_on_where_the_run_ends():
    short, long = Power(warmup=0.1, decay=0.2, **SMALL), Power(warmup=0.02, decay=0.5, **SMALL)
    assert in_steps(short, 100, slice(80)) == pytest.approx(in_steps(long, 500, slice(80)), abs=1e-12)
    assert min(in_steps(short, 100, slice(80))) < 0.3
    assert short.trunk_end == pytest.approx(0.8)


def test_warmup_rises_to_the_law_not_to_the_cap():
    schedule = Power(warmup=0.2, decay=0.0, **SMALL)
    reached = schedule.law(20 * 64)
    assert reached == pytest.approx(0.562052, abs=1e-6)  # 8 * 0.0027 * 1280 ** -0.51 / 0.001
    assert in_steps(schedule, 100, slice(20)) == pytest.approx([reached * (s + 1) / 20 for s in range(20)])
    assert in_steps(schedule, 100)[20] == pytest.approx(schedule.law(21 * 64))


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_decay_starts_from_the_law_at_its_start(floor):
    shapes = {
        "linear": lambda x: 1 - x,
        "exponential": lambda x: (math.e * math.exp(-x) - 1) / (math.e - 1),
    }
    for name, height in shapes.items():
        schedule = Power(warmup=0.0, decay=0.2, shape=name, floor=floor, **SMALL)
        start = schedule.law(80 * 64)
        expected = [start * (floor + (1 - floor) * height((s - 79) / 20)) for s in range(80, 100)]
        assert in_steps(schedule, 100, slice(80, None)) == pytest.approx(expected, abs=1e-12)
        assert in_steps(schedule, 100)[-1] == pytest.approx(start * floor, abs=1e-15)


@pytest.mark.parametrize("budget", ["100 steps", "6400 tokens", "1e6 flops", "0.64 epochs"])
def test_a_clock_that_counts_tokens_gives_what_counted_steps_give(budget):
    schedule, clock = Power(**SMALL), Clock(Budget.parse(budget), epoch_tokens=10_000)
    for expected in in_steps(schedule, 100):
        clock.begin_step(64, 1e4)
        assert schedule.factor(clock) == pytest.approx(expected, abs=1e-9)
        clock.advance(64, 1e4)
    assert clock.progress == 1.0


def test_under_seconds_the_law_follows_tokens_not_time():
    """The same second, twice the tokens: 2 ** -0.51 of the rate."""
    schedule = Power(warmup=0.0, **SMALL)
    once, twice = (schedule.factor(StepClock(0, 0.5, tokens=64 * n - 64)) for n in (100, 200))
    assert twice / once == pytest.approx(2**-0.51)


def trainer(start=None, **options):
    recipe = SimpleNamespace(schedule=SimpleNamespace(options=options), start=start)
    return SimpleNamespace(recipe=recipe, plan={"peak_lr": 0.001, "batch_size": 8, "context": 8})


def test_within_the_trainer_it_takes_the_runs_own_numbers():
    schedule = Power(a=SMALL["a"])
    schedule.setup(trainer(a=SMALL["a"]))
    assert in_steps(schedule, 100) == in_steps(Power(**SMALL), 100)
    with pytest.raises(RecipeError, match="batch_size and context from the run"):
        Power().setup(trainer(batch_size=3, context=4))


def test_a_run_follows_the_law_of_its_own_batches(small, tmp_path):
    """12 steps of 8 windows of 32 tokens at a peak of 0.005; the cap ends after 3.5 steps."""
    import thalweg
    from thalweg.runs import Run

    recipe = small("adamw+power:a=0.02,warmup=0.0,decay=0.25", training__precision="float32")
    run = Run.open(thalweg.train(recipe, tmp_path / "run", quiet=True).folder)
    rates = [line["lr"] for line in run.metrics("step")]
    assert rates[:9] == pytest.approx([min(0.005, 8 * 0.02 * (256 * (step + 1)) ** -0.51) for step in range(9)])
    assert rates[2] == 0.005
    assert rates[8] < 0.004
    assert rates[11] == 0.0


def test_a_continued_run_goes_on_with_the_count_of_tokens():
    """50 steps and then 50 more without a warm-up are the trunk of 100."""
    whole = Power(warmup=0.0, decay=0.0, **SMALL)
    rest = Power(warmup=0.0, decay=0.0, a=SMALL["a"])
    rest.setup(trainer(start=SimpleNamespace(tokens=50 * 64)))
    assert in_steps(rest, 50) == pytest.approx(in_steps(whole, 100, slice(50, None)))


def test_torch_scheduler_counts_tokens_by_steps():
    schedule = Power(warmup=0.0, decay=0.0, **SMALL)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.001)
    scheduler = schedule.scheduler(optimizer, 50)
    for step in range(50):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(min(0.001, 8 * 0.0027 * (64 * (step + 1)) ** -0.51))
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warmup": 0.6, "decay": 0.5}, "add up"),
        ({"b": 0.1}, "b = 0.1"),
        ({"b": math.nan}, "b = nan"),
        ({"a": 0.0}, "a = 0"),
        ({"peak_lr": -1.0}, "peak_lr"),
        ({"batch_size": 0}, "batch_size"),
        ({"context": 0}, "context"),
        ({"shape": "cosine"}, "cosine"),
        ({"floor": 2.0}, "floor"),
    ],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        Power(**options)
