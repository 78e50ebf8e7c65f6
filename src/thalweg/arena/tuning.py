"""Equal tuning: every arm gets the same number of trials over its own search space.

The space of an arm is the peak rate and the weight decay of its optimizer, and every option of its methods whose card
says where to search, except those that the arm itself fixes. The first trial of every arm is its defaults; the others
are drawn by Optuna, quasi-randomly (scrambled Sobol points) or by its TPE sampler. Trials run on a seed of their own
and are judged on the half of the held-out documents that is never reported on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from thalweg import catalog
from thalweg.arena.measured import Outcome, run_of
from thalweg.arena.unit import Unit
from thalweg.arena.workload import TUNING_SEED, Values, Workload
from thalweg.arms import choices_of
from thalweg.errors import ArenaError

SAMPLERS = ("qmc", "tpe")
# The peak rate is searched this far to either side of the optimizer's default, and so is the weight decay.
RATE_FACTOR = 4.0
DECAY_FACTOR = 8.0

Space = dict[str, dict[str, Any]]


def search_space(arm: str, defaults: Values) -> Space:
    """Where an arm is tuned: {"peak_lr": {"type", "low", "high", "scale"}, "weight_decay": ..., "wsd:decay": ...}."""
    decay = defaults["weight_decay"] or 0.1
    space: Space = {
        "peak_lr": _around(defaults["peak_lr"], RATE_FACTOR),
        "weight_decay": _around(decay, DECAY_FACTOR),
    }
    for choice in choices_of(arm):
        for key, option in catalog.lookup(choice.name).options.items():
            if option.search is not None and key not in choice.options:
                space[f"{choice.name}:{key}"] = {"type": option.type, **option.search}
    return space


def _around(value: float, factor: float) -> dict[str, Any]:
    return {"type": "float", "low": value / factor, "high": value * factor, "scale": "log"}


def starting_values(space: Space, defaults: Values) -> Values:
    """The first trial: the defaults of plan and cards."""
    values = {}
    for name in space:
        if ":" in name:
            method, key = name.split(":")
            values[name] = catalog.lookup(method).options[key].default
        else:
            values[name] = defaults[name]
    return values


def require_optuna() -> None:
    """Raises ArenaError where the extra is not installed."""
    import importlib.util

    if importlib.util.find_spec("optuna") is None:
        raise ArenaError(
            "tuning needs optuna, which is not installed", where="--tune", fix='pip install "thalweg[tune]"'
        )


class Tuning:
    """The trials of one arm on one workload.

    Args:
        submit: runs a unit under a label.
        trials: how many, defaults included.
        sampler: "qmc" or "tpe".
    """

    def __init__(self, workload: Workload, arm: str, trials: int, sampler: str) -> None:
        self.workload, self.arm, self.count = workload, arm, trials
        self.defaults = workload.defaults(arm)
        self.space = search_space(arm, self.defaults)
        self.trials: list[dict[str, Any]] = []
        self._study = _study(sampler)
        self._batch = 1 if sampler == "tpe" else trials

    def run(self, submit: Callable[[Unit, str], Future[Outcome]]) -> None:
        """Run all trials; those of a quasi-random sampler side by side, since none waits for another's outcome."""
        import optuna

        start = starting_values(self.space, self.defaults)
        distributions = _distributions(self.space)
        self._finish([(start, submit(self._unit(start), f"{self.arm}, trial 0"))])
        first = self.trials[0]["bits_per_byte"]
        self._study.add_trial(
            optuna.trial.create_trial(
                params={name: _within(self.space[name], value) for name, value in start.items()},
                distributions=distributions,
                value=math.inf if first is None else first,
            )
        )
        while len(self.trials) < self.count:
            wanted = min(self._batch, self.count - len(self.trials))
            asked = [self._study.ask(distributions) for _ in range(wanted)]
            numbers = range(len(self.trials), self.count)
            work = [
                (trial.params, submit(self._unit(trial.params), f"{self.arm}, trial {number}"))
                for trial, number in zip(asked, numbers, strict=False)
            ]
            self._finish(work)
            for trial, told in zip(asked, self.trials[-wanted:], strict=True):
                value = told["bits_per_byte"]
                # A trial that failed is as bad as can be, not missing.
                self._study.tell(trial, math.inf if value is None else value)

    def _unit(self, values: Values) -> Unit:
        return self.workload.unit(self.arm, TUNING_SEED, values, tuning=True)

    def _finish(self, work: list[tuple[Values, Future[Outcome]]]) -> None:
        for values, future in work:
            found = run_of(future.result())
            kept = {name: found[name] for name in ("bits_per_byte", "status", "error", "run")}
            self.trials.append({"number": len(self.trials), "values": values, **kept})

    @property
    def winner(self) -> int | None:
        """The number of the best trial; None where all failed."""
        good = [trial for trial in self.trials if trial["bits_per_byte"] is not None]
        return min(good, key=lambda trial: trial["bits_per_byte"])["number"] if good else None


def _study(sampler: str) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = (
            optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=0)
            if sampler == "qmc"
            else optuna.samplers.TPESampler(seed=0, n_startup_trials=4)
        )
    return optuna.create_study(sampler=made)


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for name, said in space.items():
        if "choices" in said:
            found[name] = CategoricalDistribution(said["choices"])
        elif said["type"] == "int":
            found[name] = IntDistribution(int(said["low"]), int(said["high"]), log=said["scale"] == "log")
        else:
            found[name] = FloatDistribution(said["low"], said["high"], log=said["scale"] == "log")
    return found


def _within(said: dict[str, Any], value: Any) -> Any:
    """A default that lies outside its card's search range counts, for the sampler, as the nearest end."""
    return value if "choices" in said else min(max(value, said["low"]), said["high"])
