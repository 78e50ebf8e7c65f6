"""Compare arms fairly: same seeds, same data, same budget, same number of tuning trials; then say what it means.

    workloads are planned, the machine is divided, every arm is tuned (if asked) and run on every seed,
    and the runs are assessed: means, paired differences, verdicts

Runs that were finished before are found by their hash and not repeated, so an interrupted comparison goes on where it
was.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from thalweg.arena import tuning
from thalweg.arena.assess import assess, performance_profile
from thalweg.arena.comparison import SCHEMA, Comparison
from thalweg.arena.local import Local
from thalweg.arena.measured import run_of
from thalweg.arena.submission import Submitter, submitting
from thalweg.arena.unit import Unit
from thalweg.arena.workload import TUNING_SEED, Values, Workload
from thalweg.cache import cache_folder
from thalweg.errors import ArenaError
from thalweg.runs import output_folder

PLACES = ("local", "ray")


@dataclass(frozen=True)
class Terms:
    """On what terms the arms meet; see `compare`."""

    seeds: int
    tune: int
    sampler: str
    margin: float

    @property
    def expected(self) -> dict[str, int]:
        """Runs of each kind that an arm will have."""
        return ({"trials": self.tune} if self.tune else {}) | {"seeds": self.seeds}

    def check(self, arms: Sequence[str]) -> None:
        """Raises ArenaError for terms that make no comparison."""
        if len(arms) < 2:
            raise ArenaError("a comparison needs two arms or more", fix='thalweg compare "adamw" "muon"')
        twice = [arm for arm in arms if list(arms).count(arm) > 1]
        if twice:
            raise ArenaError(f"the arm {twice[0]!r} is named twice", fix="Name each arm once.")
        if self.seeds < 1:
            raise ArenaError(f"{self.seeds} seeds are none", where="--seeds", fix="Give 1 or more; 3 is usual.")
        if self.tune < 0 or self.margin < 0:
            raise ArenaError("trials and margin cannot be negative", where="--tune, --margin")
        if self.sampler not in tuning.SAMPLERS:
            raise ArenaError(f"there is no sampler {self.sampler!r}", where="--sampler", fix="qmc or tpe")
        if self.tune:
            tuning.require_optuna()


def compare(
    arms: Sequence[str],
    *,
    budget: str = "600 steps",
    corpus: str = "stdlib",
    model: str = "1M",
    seeds: int = 3,
    tune: int = 0,
    sampler: str = "qmc",
    margin: float = 0.002,
    workloads: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    on: str = "local",
    address: str | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    runs: str | Path = "runs/compared",
    quiet: bool = False,
) -> Comparison:
    """Compare arms; the first is the baseline.

    Args:
        arms: as recipes spell them, such as "adamw+cosine".
        budget, corpus, model: of every run; the model may be "auto".
        seeds: runs an arm, with seeds 0, 1, ...
        tune: trials an arm before that, its defaults included; 0 takes the defaults.
        sampler: "qmc" (quasi-random) or "tpe".
        margin: differences within it count as ties, relative to the baseline's bits per byte.
        workloads: "model=4M,corpus=b" each, instead of one of model, corpus and budget.
        settings: dotted recipe keys for all runs, such as {"training.clip": 0.5}.
        on: "local" or "ray". address: of the Ray cluster; None starts or finds a local one.
        jobs: runs at a time; None measures what is fastest.
        out: folder for results.json, table.md and report.html; `comparisons/<date>-<time>` when left out.
        runs: folder in which finished runs are kept and found. quiet: nothing on standard error.

    Raises:
        UserError: arms, corpus, budget or folders that cannot be used. A run that fails is part of the result.
    """
    began = time.monotonic()
    terms = Terms(seeds, tune, sampler, margin)
    terms.check(arms)
    folder = _out(out)
    base = Workload(model, corpus, budget, settings or {}, Path(runs))
    meeting = Meeting([Workload.parse(text, base) for text in workloads] or [base], arms, terms)
    meeting.prepare()
    execution = _execution(on, address, jobs)
    found = meeting.run(execution, quiet=quiet)
    comparison = Comparison(_results(meeting, budget, execution, found, time.monotonic() - began), folder)
    comparison.write()
    return comparison


class Meeting:
    """The runs of all arms on all workloads."""

    def __init__(self, workloads: list[Workload], arms: Sequence[str], terms: Terms) -> None:
        self.workloads, self.arms, self.terms = workloads, arms, terms
        self.sides = [(workload, arm) for workload in workloads for arm in arms]
        self.units: list[Unit] = []

    def prepare(self) -> None:
        """Plan every run that is not tuned; `units` has them all."""
        for workload, arm in self.sides:
            workload.recipe(arm)  # mistakes show before anything is planned
        for workload in self.workloads:
            workload.prepare(self.arms[0])
        self.units = [workload.unit(arm, seed) for workload, arm in self.sides for seed in range(self.terms.seeds)]

    def run(self, execution: Any, *, quiet: bool) -> list[dict[str, Any]]:
        """Everything; the `workloads` of results.json."""
        rows = [(workload.name, arm) for workload, arm in self.sides]
        with submitting(execution, self.units, rows, self.terms.expected, quiet=quiet) as submitter:
            told = self._told(submitter)
        found = []
        for number, workload in enumerate(self.workloads):
            arms = told[number * len(self.arms) : (number + 1) * len(self.arms)]
            assess(arms, self.terms.margin)
            places = {"name": workload.name, "model": workload.model, "corpus": workload.corpus}
            found.append({**places, "budget": workload.budget, "setting": workload.setting, "arms": arms})
        return found

    def _told(self, submitter: Submitter) -> list[dict[str, Any]]:
        """What became of every side. Each goes on by itself, its trials, then its seeds; the execution divides."""
        pool = ThreadPoolExecutor(len(self.sides))
        try:
            futures = [pool.submit(self._side, submitter, workload, arm) for workload, arm in self.sides]
            return [future.result() for future in futures]
        finally:
            # After an interruption what waits is dropped, so no thread is left waiting for it.
            submitter.execution.close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _side(self, submitter: Submitter, workload: Workload, arm: str) -> dict[str, Any]:
        """One arm on one workload."""
        place = (workload.name, arm)
        values: Values | None = None
        told: dict[str, Any] = {"space": None, "trials": [], "winner": None}
        if self.terms.tune:
            tuned = tuning.Tuning(workload, arm, self.terms.tune, self.terms.sampler)
            tuned.run(partial(submitter.submit, place=place, kind="trials"))
            told = {"space": tuned.space, "trials": tuned.trials, "winner": tuned.winner}
            values = tuned.trials[tuned.winner]["values"] if tuned.winner is not None else None
        units = [workload.unit(arm, seed, values) for seed in range(self.terms.seeds)]
        outcomes = submitter.outcomes({seed: (unit, place) for seed, unit in enumerate(units)})
        runs = [run_of(outcome) for outcome in outcomes.values()]
        chosen = units[0].plan["chosen"]
        return {
            "name": arm,
            "arm": units[0].recipe.arm,
            "peak_lr": chosen["peak_lr"],
            "weight_decay": chosen["weight_decay"],
            **told,
            "runs": runs,
        }


def _results(
    meeting: Meeting, budget: str, execution: Any, found: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    """What results.json holds."""
    terms, workloads = meeting.terms, meeting.workloads
    return {
        "schema": SCHEMA,
        **_surroundings(workloads[0]),
        "execution": {
            "on": execution.name,
            "slots": execution.slots,
            "threads": execution.threads,
            "reason": execution.reason,
            "seconds": round(seconds, 2),
        },
        "budget": budget,
        "seeds": list(range(terms.seeds)),
        "margin": terms.margin,
        "warnings": _warnings(workloads, terms),
        "tuning": {"trials": terms.tune, "sampler": terms.sampler, "seeds": [TUNING_SEED]} if terms.tune else None,
        "workloads": found,
        "profile": performance_profile(found),
    }


def _execution(on: str, address: str | None, jobs: int | None) -> Any:
    if on == "local":
        return Local(cache_folder(), jobs)
    if on == "ray":
        from thalweg.arena.ray import OnRay

        return OnRay(address, jobs)
    raise ArenaError(f"there is nowhere called {on!r} to run", where="--on", fix="local or ray")


def _out(out: str | Path | None) -> Path:
    return output_folder(out if out is not None else Path("comparisons") / time.strftime("%Y%m%d-%H%M%S"))


def _surroundings(workload: Workload) -> dict[str, Any]:
    from thalweg.sessions.environment import describe

    told = describe(workload.machine, 1)
    return {
        "command": told["command"],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": told["versions"],
        "machine": told["machine"],
    }


def _warnings(workloads: list[Workload], terms: Terms) -> list[str]:
    found = []
    if any(workload.timed for workload in workloads):
        found.append("A budget in seconds: the machine's noise enters, and whoever shares it takes steps away.")
    if terms.seeds < 3:
        found.append(
            f"{terms.seeds} seed{'s say' if terms.seeds > 1 else ' says'} little: 3 or more tell noise from gain."
        )
    return found
