"""`thalweg schedule refine`: the next run's schedule from this one's gradient norms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "refine"
EXAMPLES = (
    "Example:  thalweg schedule refine runs/a -o refined.json  |  thalweg train --arm refined:source=refined.json"
)


def run(
    folder: Annotated[Path, typer.Argument(help="A finished run, trained with +record_norms in its arm.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("refined.json"),
    q: Annotated[
        int, typer.Option(help="1: l1 norms, for Adam and its like. 2: l2 norms, for plain gradient descent.")
    ] = 1,
    window: Annotated[float, typer.Option(help="Of the running median, as a share of the run.")] = 0.1,
) -> None:
    """Derive a schedule from the gradient norms of a run."""
    from thalweg.sessions.refining import refine_run

    facts = refine_run(folder, out, q=q, window=window)
    print(f"{out}: {facts['steps']} factors from {facts['norm']} of {facts['run']} ({facts['arm']})")
    print(f"Train with --arm refined:source={out}, and tune the peak rate again.")
