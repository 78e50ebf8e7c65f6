"""The rates that a schedule will take, before it is trained with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from thalweg import catalog
from thalweg.errors import RecipeError
from thalweg.recipe import Choice, Recipe
from thalweg.sessions.run_curves import RunCurve
from thalweg.training.planned import is_closed_form, planned_factors

MOST_POINTS = 2000
# Schedules that another run leads up to: they say nothing of a run from its first step.
AFTER_A_RUN = ("refined", "rewarm_redecay")


def planned_rates(choice: Choice, steps: int, run: RunCurve, points: int = MOST_POINTS) -> np.ndarray:
    """The rates [steps] of a schedule from the first step on, at the peak rate, batch and pace of a run.

    Args:
        points: at which the schedule is asked; rates between them lie on straight lines.

    Raises:
        RecipeError: a schedule whose rates only training can tell.
    """
    schedule = prepared(choice, run.recipe, run.chosen)
    costs = (run.step_tokens, run.step_seconds, run.step_flops)
    return run.chosen["peak_lr"] * planned_factors(schedule, 0, steps, costs, points)


def prepared(choice: Choice, recipe: Recipe, chosen: dict[str, Any]) -> Any:
    """The schedule, having seen the run's plan as `setup` would have shown it."""
    schedule = choice.build()
    if not is_closed_form(schedule):
        raise RecipeError(
            f"{choice.name} decides while it trains, so nobody knows its rates before",
            where="--schedule",
            fix="Name a schedule of closed form; `thalweg methods --family schedules` lists them.",
        )
    if hasattr(schedule, "setup"):
        schedule.setup(SimpleNamespace(plan=chosen, recipe=recipe.model_copy(update={"schedule": choice})))
    return schedule


def closed_forms(warmup: float | None) -> list[Choice]:
    """Every schedule of the catalogue that stands for itself, with its defaults, and this warm-up where it has one."""
    found = []
    for card in catalog.load().values():
        if card.slot != "schedule" or card.name in AFTER_A_RUN:
            continue
        usual = card.options.get("warmup")
        options = {"warmup": warmup} if usual is not None and warmup not in (None, usual.default) else {}
        try:
            choice = Choice(name=card.name, options=options)
            if is_closed_form(choice.build()):
                found.append(choice)
        except RecipeError:
            continue
    return found
