"""`predict`: where a run's loss goes, and where it would go under other schedules and budgets.

The annealing law is fitted to the runs named; rates are all that it needs to know of another schedule. Everything is
for the model, batch, data order, peak rate and optimizer of these runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thalweg import catalog
from thalweg.arms import Choice, parse_schedule
from thalweg.budget import Budget
from thalweg.errors import BudgetError, RecipeError
from thalweg.laws.annealing_features import schedules
from thalweg.laws.lr_annealing import CONVENTIONS, MOMENTA, AnnealingLaw, fit, warmup_steps
from thalweg.sessions import schedule_search
from thalweg.sessions.planned_rates import closed_forms, planned_rates
from thalweg.sessions.run_curves import RunCurve, read

REFITS = 200
POINTS = 200  # of a forecast curve
MOST_STEPS = 20_000_000
ALONE = "Name a schedule alone, such as uba:phi=5: the law's constants belong to the rest of the recipe."
SEARCHED = (
    "The best of many forecasts is likely to promise too much, and the law likes falls steeper than any it has seen: "
    "train it, or let `thalweg compare` decide."
)


@dataclass(frozen=True)
class Forecast:
    """A schedule's curve, in nats a token.

    Attributes:
        schedule: as an arm spells it.
        steps: after which the losses are foretold, from the end of the warm-up on.
        rates: at those steps.
        losses, low, high: forecast and its band.
    """

    schedule: str
    steps: list[int]
    rates: list[float]
    losses: list[float]
    low: list[float]
    high: list[float]

    @property
    def final(self) -> float:
        return self.losses[-1]


@dataclass(frozen=True)
class Standing:
    """Where another schedule would end, in nats a token, and against the forecast as a share of it (negative: lower).

    The interval of the difference is narrower than the two losses' own: what both share cancels.
    """

    schedule: str
    final: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


@dataclass(frozen=True)
class Prediction:
    """All that `predict` found.

    Attributes:
        law: as fitted. runs: what it was fitted to. measure: "held_out" or "train".
        forecast: the run's own, or that of the schedule and budget asked for.
        standings: other schedules at their defaults, the lowest first. best: the lowest that a search found.
        best_forecast: its curve. notes: what to know before believing it.
    """

    law: AnnealingLaw
    runs: list[RunCurve]
    measure: str
    level: float
    forecast: Forecast
    standings: list[Standing]
    best: Standing | None
    best_forecast: Forecast | None
    notes: list[str]

    @property
    def bits_per_nat(self) -> float:
        return self.runs[0].bits_per_nat

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "runs": [
                {
                    "folder": str(run.folder),
                    "schedule": str(run.recipe.schedule),
                    "steps": run.steps.tolist(),
                    "losses": run.losses.tolist(),
                }
                for run in self.runs
            ],
            "measure": self.measure,
            "level": self.level,
            "law": self.law.to_dict() | {"intervals": self.law.intervals(self.level)},
            "bits_per_nat": self.bits_per_nat,
            "forecast": asdict(self.forecast),
            "standings": [asdict(standing) for standing in self.standings],
            "best": asdict(self.best) if self.best else None,
            "best_forecast": asdict(self.best_forecast) if self.best_forecast else None,
            "notes": self.notes,
        }


def predict(
    folders: Sequence[str | Path],
    schedule: str | None = None,
    budget: str | None = None,
    *,
    best: bool = False,
    measure: str | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Prediction:
    """Forecasts a loss curve from runs of one setting.

    Args:
        folders: of runs; the first one's schedule, budget and pace are what is forecast when nothing else is said.
        schedule: another one, such as "uba:phi=5", for a run from the first step on.
        budget: another one, such as "2000 steps"; times are turned into steps at the first run's pace.
        best: search the schedules of closed form for the lowest forecast.
        measure: "held_out" or "train"; chosen by what there is when left out.
        level: of bands and intervals.
        seed: of the bootstrap.

    Raises:
        UserError: runs that cannot be read or cannot identify the law, or a schedule that nobody can foretell.
    """
    runs, measure = read(folders, measure)
    law = fit([run.curve for run in runs], MOMENTA, CONVENTIONS, bootstrap=REFITS, seed=seed)
    main = runs[0]
    steps = main.total if budget is None else steps_of(Budget.parse(budget), main)
    own = main.recipe.schedule
    choice = own if schedule is None else parse_schedule(schedule, where="--schedule", fix=ALONE)
    rates = planned_rates(choice, steps, main) if schedule or budget else own_rates(main)
    # Training losses are averages of noisy ones: what a single one would be is of no interest.
    view = _View(law, level, 1.0 if measure == "held_out" else 0.0)
    forecast = view.forecast(str(choice), rates)
    others = [other for other in closed_forms(warmup_of(main)) if str(other) != str(choice)]
    planned = [(str(other), known) for other in others for known in _rates(other, steps, main)]
    standings = [view.standing(name, known, rates) for name, known in planned]
    winners = [schedule_search.search(law, main, steps, closed_forms(warmup_of(main)))] if best else []
    winning = [(str(winner), planned_rates(winner, steps, main)) for winner in winners]
    return Prediction(
        law=law,
        runs=runs,
        measure=measure,
        level=level,
        forecast=forecast,
        standings=sorted(standings, key=lambda standing: standing.final),
        best=next((view.standing(name, known, rates) for name, known in winning), None),
        best_forecast=next((view.forecast(name, known) for name, known in winning), None),
        notes=_notes(law, runs, rates) + [SEARCHED] * best,
    )


@dataclass(frozen=True)
class _View:
    """The law, asked for whole schedules."""

    law: AnnealingLaw
    level: float
    noise: float

    def forecast(self, name: str, rates: np.ndarray) -> Forecast:
        warmup = warmup_steps(rates)
        places = np.unique(np.linspace(min(warmup + 1, len(rates)), len(rates), POINTS).round().astype(int))
        low, high = self.law.band(rates, places, warmup, self.level, noise=self.noise)
        losses = self.law.predict(rates, places, warmup)
        return Forecast(name, places.tolist(), rates[places - 1].tolist(), losses.tolist(), low.tolist(), high.tolist())

    def standing(self, name: str, rates: np.ndarray, own: np.ndarray) -> Standing:
        warmup, end = warmup_steps(rates), [len(rates)]
        final = float(self.law.predict(rates, end, warmup)[0])
        low, high = self.law.band(rates, end, warmup, self.level, noise=self.noise)
        base = float(self.law.predict(own, [len(own)], warmup_steps(own))[0])
        mine = self.law.samples(rates, end, warmup)[:, 0]
        theirs = self.law.samples(own, [len(own)], warmup_steps(own))[:, 0]
        wrong = np.random.default_rng(0).normal(size=(20, len(mine))) * self.law.law_error
        change = np.expm1(np.log(mine / theirs) + wrong)
        ends = np.quantile(change, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Standing(name, final, float(low[0]), float(high[0]), final / base - 1, float(ends[0]), float(ends[1]))


def own_rates(run: RunCurve) -> np.ndarray:
    """The rates that a run took, and those that its schedule will take to the end of its budget."""
    if run.finished:
        return run.rates
    planned = planned_rates(run.recipe.schedule, run.total, run)
    return np.concatenate([run.rates, planned[len(run.rates) :]])


def steps_of(budget: Budget, run: RunCurve) -> int:
    """Steps that a budget buys at a run's batch and pace."""
    if budget.unit == "epochs":
        tokens = run.chosen["tokens"] / run.chosen["epochs"] * budget.amount if run.chosen.get("epochs") else 0.0
        steps = tokens / run.step_tokens
    else:
        costs = {"steps": 1.0, "tokens": run.step_tokens, "flops": run.step_flops, "seconds": run.step_seconds}
        steps = budget.amount / costs[budget.unit]
    if not 1 <= round(steps) <= MOST_STEPS:
        raise BudgetError(
            f"{budget} is {steps:,.0f} steps of this run, which cannot be foretold",
            where="--budget",
            fix="Choose a budget nearer to the run's own.",
        )
    return round(steps)


def warmup_of(run: RunCurve) -> float | None:
    """The warm-up of a run's schedule, as a share of the budget; other schedules are compared with the same."""
    choice = run.recipe.schedule
    option = catalog.lookup(choice.name).options.get("warmup")
    return None if option is None else float(choice.options.get("warmup", option.default))


def _rates(choice: Choice, steps: int, run: RunCurve) -> list[np.ndarray]:
    """Planned rates, or nothing for a schedule that will not have this plan or these options together."""
    try:
        return [planned_rates(choice, steps, run)]
    except RecipeError:
        return []


def _notes(law: AnnealingLaw, runs: Sequence[RunCurve], rates: np.ndarray) -> list[str]:
    notes = []
    if schedules([run.curve for run in runs]) < 2:
        notes.append(
            "Fitted to one schedule only. A second run with another one would make forecasts of other schedules surer."
        )
    peaks = {float(run.chosen["peak_lr"]) for run in runs}
    if len(peaks) > 1:
        notes.append("The runs differ in peak rate, and the law takes a higher one to be better whatever it is.")
    walk, annealed = (float(values.max()) for values in law.features(rates, warmup_steps(rates)))
    if walk > 1.5 * law.reach[0]:
        notes.append(
            f"The forecast goes {walk / law.reach[0]:.1f} times as far as the curves that the law was fitted to."
        )
    if annealed > 1.5 * max(law.reach[1], 1e-300):
        notes.append(f"It anneals {annealed / law.reach[1]:.1f} times as much as those curves.")
    return notes
