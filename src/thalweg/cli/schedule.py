"""`thalweg schedule`: what can be done with schedules, without a run or with one that is over."""

from __future__ import annotations

import typer

from thalweg.cli import schedule_plot, schedule_refine

NAME = "schedule"
EXAMPLES = "Start with: thalweg schedule plot uba cosine wsd"

app = typer.Typer(help="Draw schedules, and derive them from runs.", no_args_is_help=True, rich_markup_mode=None)


for module in (schedule_plot, schedule_refine):
    app.command(module.NAME, epilog=module.EXAMPLES)(module.run)
