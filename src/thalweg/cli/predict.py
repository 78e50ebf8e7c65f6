"""`thalweg predict`: where a loss goes, and where it would go under other schedules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from thalweg.sessions.predict import Prediction

NAME = "predict"
EXAMPLES = (
    "Examples:  thalweg predict runs/a runs/b  |  thalweg predict runs/a --schedule uba:phi=5 --budget 1h  |  "
    "thalweg predict runs/a runs/b --best --out forecast.html"
)


def run(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs that differ in schedule and length only.", show_default=False),
    ],
    schedule: Annotated[
        str | None, typer.Option("--schedule", "-s", help="Forecast this one, as uba:phi=5, from the first step on.")
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", "-b", help="For this budget instead of the run's.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Search the schedules for the lowest forecast.")] = False,
    measure: Annotated[
        str | None, typer.Option(help="Losses to fit: held_out or train. Default: held_out where there are 12.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write .png, .svg, .html or .json.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Forecast a run's loss curve, with its band, and what other schedules would reach."""
    import json as writer

    from thalweg.reports import forecast
    from thalweg.sessions.predict import predict

    if out is not None:
        forecast.check_path(out)
    found = predict(runs, schedule, budget, best=best, measure=measure)
    if json:
        print(writer.dumps(found.to_dict()))
    else:
        _show(found)
    if out is not None:
        forecast.write(found.to_dict(), out)
        if not json:
            print(f"\nWritten to {out}")


def _show(found: Prediction) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    law, curve, bits = found.law, found.forecast, found.bits_per_nat
    intervals = law.intervals(found.level)
    kind = "evaluations" if found.measure == "held_out" else "averaged training losses"
    console.print(
        f"Law    L = {law.L0:.4g} + {law.A:.4g} S1^-{law.alpha:.3g} - {law.C:.4g} S2, momentum {law.momentum:g}, "
        f"warm-up counted {law.convention}; {len(law.residuals)} {kind}, {100 * law.residuals.std():.2f}% off"
    )
    written = ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in intervals.items())
    console.print(f"       {found.level:.0%} intervals: {written}")
    console.print(
        f"[bold]{escape(curve.schedule)}[/bold] ends near {curve.final * bits:.4f} bits per byte "
        f"({curve.low[-1] * bits:.4f} to {curve.high[-1] * bits:.4f}; {curve.final:.4f} nats a token) "
        f"after {curve.steps[-1]:,} steps"
    )
    console.print(_table(found))
    for note in found.notes:
        console.print(f"Note   {note}")


def _table(found: Prediction) -> object:
    """The standings, and the best schedule above them."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("other schedules", "bits/byte", "interval", "difference", "interval"):
        first = column == "other schedules"
        table.add_column(column, no_wrap=not first, overflow="fold", justify="left" if first else "right")
    bits = found.bits_per_nat
    for row in [*([found.best] if found.best else []), *found.standings]:
        table.add_row(
            escape(row.schedule),
            f"{row.final * bits:.4f}",
            f"{row.low * bits:.3f} to {row.high * bits:.3f}",
            f"{row.difference:+.2%}",
            f"{row.difference_low:+.1%} to {row.difference_high:+.1%}",
            style="bold" if row is found.best else None,
        )
    return table
