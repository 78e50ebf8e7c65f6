"""What schedules look like under a budget: their curves as numbers, as a figure, and on the terminal.

A curve is the factor of the peak rate at the end of each step. Only what a budget itself tells stands on the clock that
a schedule is asked with: a schedule that looks at what training does, or at tokens under a budget of seconds, cannot be
drawn and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.arms import Choice, parse_schedule
from thalweg.budget import Budget
from thalweg.errors import RecipeError
from thalweg.reports import terminal_plot
from thalweg.reports.pictures import DASHES, PALETTE, legend, panels, plain, save
from thalweg.training.planned import is_closed_form

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 1000
ENDINGS = (".png", ".svg")
Y_LABEL = "learning rate / peak"


@dataclass(frozen=True)
class Curve:
    """A schedule under a budget.

    Args:
        name: its arm.
        points: (spent in the budget's unit, factor), from the first step or sample to the budget's end.
    """

    name: str
    points: list[tuple[float, float]]


class DrawnClock:
    """A clock that knows what a budget tells of a moment, and refuses to invent the rest.

    Args:
        budget: what may be spent.
        progress: the share of it that is spent at the end of the coming step.
        spent: what is spent when that step begins, in the budget's unit.
        name: the schedule that asks, for the error.
    """

    def __init__(self, budget: Budget, progress: float, spent: float, name: str) -> None:
        self.progress, self._budget, self._name = progress, budget, name
        if budget.unit == "steps":
            # Loops that count steps only have such a clock: no tokens, no seconds, no flops.
            self.step, self.tokens, self.seconds, self.flops = round(spent), 0, 0.0, 0.0
        elif budget.unit != "epochs":
            setattr(self, budget.unit, spent)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise RecipeError(
            f"{self._name} looks at the clock's {name}, which a budget of {self._budget} does not tell",
            where="schedule plot",
            fix='Draw it under a budget that tells it, such as --budget "1000 steps" or "50M tokens".',
        )


def curves(arms: Sequence[str], budget: Budget) -> list[Curve]:
    """The curves of bare schedule arms, such as "uba:phi=5", in their order.

    Raises:
        RecipeError: an arm that is no single schedule, or a schedule that a budget alone does not determine.
    """
    fix = "Name schedules alone, such as uba:phi=5; `thalweg methods --family schedules` lists them."
    named = [parse_schedule(arm, where="schedule plot", fix=fix) for arm in arms]
    return [Curve(name, _points(choice, budget)) for name, choice in {str(choice): choice for choice in named}.items()]


def _points(choice: Choice, budget: Budget) -> list[tuple[float, float]]:
    schedule = choice.build()
    if not is_closed_form(schedule) or not hasattr(schedule, "factor"):
        raise RecipeError(
            f"{choice.name} decides while it trains, so there is nothing to draw before a run",
            where="schedule plot",
            fix="Train with it: the report of the run draws the learning rate that it took.",
        )
    return [
        (spent, schedule.factor(DrawnClock(budget, spent / budget.amount, begins, choice.name)))
        for begins, spent in _moments(budget)
    ]


def _moments(budget: Budget) -> list[tuple[float, float]]:
    """(spent when a step begins, spent when it ends): whole steps where steps are counted, else of no length."""
    total = budget.amount
    count = int(min(total, MOST_POINTS)) if budget.unit == "steps" else MOST_POINTS
    ends = [total * number / count for number in range(1, count + 1)]
    if budget.unit == "steps":
        return [(round(end) - 1.0, float(round(end))) for end in ends]
    return [(end, end) for end in ends]


def terminal(drawn: Sequence[Curve], budget: Budget, width: int) -> str:
    """The curves in plain characters, `width` columns wide."""
    named = {curve.name: curve.points for curve in drawn}
    return terminal_plot.draw(named, width=width, x_label=budget.unit, y_label=Y_LABEL, top=_top(drawn))


def figure(drawn: Sequence[Curve], budget: Budget) -> Figure:
    """The curves as a matplotlib figure."""
    made, (axes,) = panels(1, 4.2)
    for number, curve in enumerate(drawn):
        x, y = zip(*curve.points, strict=True)
        dash = DASHES[number // len(PALETTE) % len(DASHES)]
        axes.plot(x, y, label=plain(curve.name), color=PALETTE[number % len(PALETTE)][0], linestyle=dash)
    axes.set(xlim=(0, budget.amount), ylim=(0, 1.02 * _top(drawn)), xlabel=budget.unit, ylabel=Y_LABEL)
    legend(made, axes)
    return made


def _top(drawn: Sequence[Curve]) -> float:
    return max(1.0, *(y for curve in drawn for _, y in curve.points))


def write(drawn: Sequence[Curve], budget: Budget, path: Path) -> Path:
    """Write the figure as PNG or SVG, as the path's ending says.

    Raises:
        RecipeError: another ending, or a place where no file can be written.
    """
    check_path(path)
    try:
        return save(figure(drawn, budget), path)
    except OSError as error:
        raise RecipeError(f"the picture cannot be written: {error.strerror}", where=str(path)) from None


def check_path(path: Path) -> None:
    """Refuse an ending that is no picture's, before anything is drawn."""
    if path.suffix.lower() not in ENDINGS:
        raise RecipeError(
            f"a picture cannot be written as {path.suffix or 'a file without an ending'}",
            where=str(path),
            fix=f"End the name in {' or '.join(ENDINGS)}.",
        )
