"""Search spaces, and trials that are the same for every arm."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from thalweg.arena import tuning
from thalweg.arena.measured import Outcome
from thalweg.arena.tuning import Tuning, search_space, starting_values
from thalweg.arena.unit import Unit


def test_the_space_of_an_arm():
    space = search_space("adamw+wsd", {"peak_lr": 0.008, "weight_decay": 0.1})
    assert set(space) == {"peak_lr", "weight_decay", "adamw:beta2", "wsd:decay"}
    assert space["peak_lr"] == {"type": "float", "low": 0.002, "high": 0.032, "scale": "log"}
    assert space["wsd:decay"] == {"type": "float", "low": 0.05, "high": 0.5, "scale": "log"}


def test_what_the_arm_fixes_is_not_searched():
    space = search_space("adamw:beta2=0.99+wsd:decay=0.3", {"peak_lr": 0.008, "weight_decay": 0.0})
    assert set(space) == {"peak_lr", "weight_decay"}
    assert space["weight_decay"]["high"] == pytest.approx(0.8)


def test_the_first_trial_is_the_defaults():
    defaults = {"peak_lr": 0.008, "weight_decay": 0.1}
    assert starting_values(search_space("adamw+wsd", defaults), defaults) == {
        **defaults,
        "adamw:beta2": 0.95,
        "wsd:decay": 0.2,
    }


@pytest.fixture
def tried(workload, monkeypatch):
    """Tunes adamw+wsd with a made-up loss: (log peak rate - log 0.02)^2; returns the Tuning."""

    def run(sampler: str, count: int, failing: int | None = None) -> Tuning:
        tuned = Tuning(workload, "adamw+wsd", count, sampler)
        done: list[Unit] = []

        def submit(unit: Unit, label: str) -> Future[Outcome]:
            assert unit.recipe.seed == tuning.TUNING_SEED
            assert unit.recipe.data.evaluate_on == "tuning"
            done.append(unit)
            future: Future[Outcome] = Future()
            status = "failed" if len(done) - 1 == failing else "finished"
            future.set_result(Outcome(unit, {"status": status}, reused=False))
            return future

        def run_of(outcome: Outcome):  # type: ignore[no-untyped-def]
            rate = outcome.unit.recipe.training.peak_lr
            assert rate is not None
            failed = outcome.answer["status"] == "failed"
            return {
                "status": outcome.answer["status"],
                "error": "no" if failed else None,
                "run": outcome.unit.key,
                "bits_per_byte": None if failed else 2.0 + (rate / 0.02 - 1) ** 2,
            }

        monkeypatch.setattr(tuning, "run_of", run_of)
        tuned.run(submit)
        return tuned

    return run


@pytest.mark.parametrize("sampler", ["qmc", "tpe"])
def test_trials(tried, sampler):
    tuned = tried(sampler, 8)
    assert [trial["number"] for trial in tuned.trials] == list(range(8))
    assert tuned.trials[0]["values"] == starting_values(tuned.space, tuned.defaults)
    for trial in tuned.trials:
        for name, value in trial["values"].items():
            assert tuned.space[name]["low"] <= value <= tuned.space[name]["high"]
    assert len({trial["values"]["peak_lr"] for trial in tuned.trials}) == 8
    best = min(tuned.trials, key=lambda trial: trial["bits_per_byte"])
    assert tuned.winner == best["number"]
    again = tried(sampler, 8)
    assert [trial["values"] for trial in again.trials] == [trial["values"] for trial in tuned.trials]


def test_quasi_random_points_are_spread(tried):
    """Sobol points after the first fill each half of every dimension evenly."""
    tuned = tried("qmc", 17)
    said = tuned.space["wsd:decay"]
    middle = (said["low"] * said["high"]) ** 0.5
    low = sum(trial["values"]["wsd:decay"] < middle for trial in tuned.trials[1:])
    assert 6 <= low <= 10


def test_a_failed_trial_is_kept_and_never_wins(tried):
    tuned = tried("qmc", 4, failing=2)
    assert tuned.trials[2]["status"] == "failed"
    assert tuned.trials[2]["bits_per_byte"] is None
    assert tuned.winner != 2
