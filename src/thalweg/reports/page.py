"""One HTML file out of a run folder: everything inside it, nothing asked of the network.

Two walls stand between foreign text (corpus, model, recipe, samples) and the reader. Every text is escaped by the
template. And the page's own policy allows only the two scripts it was written with, by their hashes: even text that
found a way out of its place could not run, and nothing in the page can reach the network.

Size: plotly's bundle is 4.8 MB and the only one its Python package carries; a report adds at most about one more.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

from thalweg.reports import figures, formats, sections
from thalweg.reports.record import Record, read_record

TEMPLATES = Path(__file__).parent / "templates"


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
    write_atomically(target, render(read_record(folder)))
    return target


def render(record: Record) -> str:
    """The whole page as text."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    loader = jinja2.FileSystemLoader(TEMPLATES)
    templates = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    plotly, script = get_plotlyjs(), own_file("report.js")
    drawn = figures.charts(record)
    return templates.get_template("report.html").render(
        **contents(record),
        charts=drawn,
        # Markup: our own files, and JSON that `embedded_json` has made harmless.
        policy=Markup(policy(plotly, script)),
        style=Markup(own_file("report.css")),
        plotly=Markup(plotly),
        script=Markup(script),
        chart_data=Markup(figures.embedded_json({"charts": drawn})),
    )


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


def own_file(name: str) -> str:
    """A template file of this package."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def policy(*scripts: str) -> str:
    """A Content-Security-Policy that runs exactly these inline scripts and forbids every connection.

    Styles stay open, since plotly sets them inline; `blob:` and `data:` images are how it saves a chart as a file.
    """
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def write_atomically(target: Path, text: str) -> None:
    """Write beside the target, sync, rename: a reader sees the old file or the new one, never half of one."""
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(6)}")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
