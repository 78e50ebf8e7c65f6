"""`thalweg report`: write a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "report"
EXAMPLES = "Example:  thalweg report runs/x"


def run(folder: Annotated[Path, typer.Argument(help="A run folder, finished or not.")]) -> None:
    """Write report.html from what the run folder holds now."""
    from thalweg.reports import write_report
    from thalweg.runs import Run

    print(write_report(Run.open(folder).folder))
