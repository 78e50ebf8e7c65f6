"""`thalweg schedule plot`: what schedules look like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "plot"
EXAMPLES = (
    'Examples:  thalweg schedule plot uba cosine wsd --budget "1000 steps"  |  '
    "thalweg schedule plot uba:phi=0.5 uba:phi=5 -o uba.svg  |  "
    'thalweg schedule plot power:batch_size=128 --budget "100B tokens"'
)


def run(
    arms: Annotated[list[str], typer.Argument(metavar="ARM", help="Schedules, such as uba:phi=5.", show_default=False)],
    budget: Annotated[str, typer.Option("--budget", "-b", help="Steps, tokens, flops, epochs or time.")] = "1000 steps",
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture, .png or .svg.")] = Path("schedules.png"),
) -> None:
    """Draw schedules under a budget, here and as a picture."""
    import shutil

    from thalweg.budget import Budget
    from thalweg.reports import schedule_plot

    schedule_plot.check_path(out)
    amount = Budget.parse(budget)
    curves = schedule_plot.curves(arms, amount)
    print(schedule_plot.terminal(curves, amount, shutil.get_terminal_size().columns))
    print(f"\nWritten to {schedule_plot.write(curves, amount, out)}")
