"""The report of a run folder as one HTML file (how it is kept safe and self-contained: `reports.document`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thalweg.reports import document, figures, formats, sections
from thalweg.reports.record import Record, read_record
from thalweg.runs import write_text


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Works on finished, diverged and interrupted runs; what is missing is said in the page.

    Args:
        folder: a run folder.

    Raises:
        RunError: there is no such folder.
    """
    folder = Path(folder)
    target = folder / "report.html"
    write_text(target, render(read_record(folder)))
    return target


def render(record: Record) -> str:
    """The whole page as text."""
    drawn = figures.charts(record)
    return document.fill("report", {"charts": drawn}, **contents(record), charts=drawn)


def contents(record: Record) -> dict[str, Any]:
    """What the template shows, as text and numbers."""
    return {
        "head": sections.headline(record),
        "notes": sections.notes(record),
        "comparison": sections.plan_beside_result(record),
        "candidates": sections.candidates(record),
        "decisions": sections.decisions(record),
        "settings": formats.flattened(record.chosen),
        "samples": sections.samples(record),
        "surroundings": sections.surroundings(record),
        "recipe_text": formats.clean(record.recipe_text),
        "command": formats.clean(formats.command_line(record.environment.get("command"))),
        "problems": {name: formats.clean(text) for name, text in record.problems.items()},
    }
