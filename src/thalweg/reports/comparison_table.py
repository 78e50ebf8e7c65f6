"""A comparison as tables: Markdown for table.md, rich for the terminal. The cells are `comparison_rows`'."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

from thalweg.reports import comparison_rows, formats
from thalweg.reports.comparison_rows import TITLES, Row
from thalweg.reports.formats import clean

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

# What Markdown takes for markup. HTML is escaped before.
MARKUP = re.compile(r"([\\`*_\[\]|~])")
COLOURS = {"better": "green", "worse": "red", "failed": "bold red", "tied": "cyan", "undecided": "yellow"}
RATE_TITLES = ("arm", "in full", "peak learning rate", "weight decay")
NOISE_TITLES = ("arm", "standard deviation over seeds", "monotonicity", "signal to noise")


def markdown(results: dict[str, Any]) -> str:
    """The whole comparison as a Markdown page: setting, a table a workload, explanations, tuning, failures, noise.

    Args:
        results: what results.json holds.
    """
    lines = ["# Comparison", ""]
    for warning in results.get("warnings") or []:
        lines += [f"> Warning: {escaped(warning)}", ""]
    lines += _table(("setting", ""), [(name, escaped(text)) for name, text in comparison_rows.setting(results)])
    for workload in comparison_rows.workloads(results):
        lines += _workload(workload)
    lines += _profile(results)
    command = formats.command_line(results.get("command"))
    if command:
        lines += [f"Repeat it with {code(command)}.", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def brief(results: dict[str, Any]) -> str:
    """The heart of a comparison for a page about something else: how it was made, the table, what was tuned to."""
    said = [(name, text) for name, text in comparison_rows.setting(results) if name in ("budget", "seeds", "tuning")]
    lines = [" ".join(f"{escaped(name)}: {escaped(text)}." for name, text in said), ""]
    for workload in comparison_rows.workloads(results):
        name = escaped(clean(workload.get("name") or "workload"))
        lines += [f"On {name}. {escaped(comparison_rows.answer(workload))}", ""]
        lines += _arms(comparison_rows.rows(workload)) + _rates(workload)
    command = formats.command_line(results.get("command"))
    return "\n".join([*lines, *([f"Repeat it with {code(command)}."] if command else [])]).rstrip("\n")


def escaped(text: Any) -> str:
    """Foreign text on one line of Markdown, without a meaning for Markdown or HTML."""
    line = " ".join(html.escape(clean(text), quote=False).split())
    return MARKUP.sub(r"\\\1", line)


def code(text: str) -> str:
    """A name as code, where that is possible; escaped as text where it holds a backtick."""
    line = " ".join(clean(text).split())
    return escaped(line) if "`" in line or not line else "`" + line.replace("|", "\\|") + "`"


def _table(titles: tuple[str, ...], rows: Any) -> list[str]:
    listed = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *listed, ""] if listed else []


def _workload(workload: dict[str, Any]) -> list[str]:
    setting = ", ".join(f"{key} {value}" for key, value in formats.flattened(workload.get("setting") or {}))
    name = clean(workload.get("name") or "workload")
    lines = [f"## {escaped(name)}", ""]
    lines += [f"{escaped(setting)}.", ""] if setting else []
    lines += [escaped(comparison_rows.answer(workload)), ""]
    rows = comparison_rows.rows(workload)
    lines += _arms(rows)
    reasons = [f"- {code(row.cells['arm'].text)}: {escaped(row.explanation)}" for row in rows if row.explanation]
    lines += [*reasons, ""] if reasons else []
    failures = comparison_rows.failures(workload)
    if failures:
        lines += ["Failed:", "", *(f"- {code(arm)}, {which}: {escaped(error)}" for arm, which, error in failures), ""]
    for arm in comparison_rows.tuned(workload):
        failed = sum(trial["failed"] for trial in arm["trials"])
        tried = f"{len(arm['trials'])} trials" + (f", {failed} of them failed" if failed else "")
        lines += [f"{code(arm['name'])} was tuned with {tried}; winner: {escaped(arm['winner'])}.", ""]
        lines += [*(f"- {code(key)} from {escaped(limits)}" for key, limits in arm["space"]), ""]
    steadiness = [(code(row[0]), *row[1:]) for row in comparison_rows.noise(workload)]
    return lines + _rates(workload) + _table(NOISE_TITLES, steadiness)


def _arms(rows: list[Row]) -> list[str]:
    return _table(tuple(TITLES.values()), [_cells(row) for row in rows])


def _rates(workload: dict[str, Any]) -> list[str]:
    return _table(RATE_TITLES, [(code(row[0]), code(row[1]), *row[2:]) for row in comparison_rows.rates(workload)])


def _cells(row: Row) -> list[str]:
    cells = []
    for column in TITLES:
        cell = row.cells[column]
        spell = code if column == "arm" else escaped
        text = f"**{cell.text}**" if column == "verdict" and cell.text in COLOURS else spell(cell.text)
        note = spell(cell.note.replace("\n", ", "))
        cells.append(f"{text} ({note})" if cell.note else text)
    return cells


def _profile(results: dict[str, Any]) -> list[str]:
    scores = (results.get("profile") or {}).get("scores") or {}
    table = _table(("arm", "score"), [(code(str(arm)), formats.significant(score, 3)) for arm, score in scores.items()])
    return ["## Performance profile", "", "Over all workloads; 1 is the best possible.", "", *table] if table else []


def rich(results: dict[str, Any]) -> Group:
    """The comparison for a terminal: a table a workload, failures and warnings below.

    Args:
        results: what results.json holds.

    Returns:
        A `rich.console.Group`. No foreign text in it is read as rich's markup or as a terminal's.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[Table | Text] = []
    several = len(comparison_rows.workloads(results)) > 1
    for workload in comparison_rows.workloads(results):
        if several:
            parts.append(Text(clean(workload.get("name") or "workload"), style="bold"))
        parts.append(_rich_table(workload))
        for arm, which, error in comparison_rows.failures(workload):
            parts.append(Text(f"{arm}, {which} failed: {error}", style="red"))
        for tuned in comparison_rows.tuned(workload):
            parts.append(Text(f"{tuned['name']} tuned: {tuned['winner']}", style="dim"))
        parts.append(Text(comparison_rows.answer(workload)))
    parts += [Text(f"Warning: {clean(warning)}", style="yellow") for warning in results.get("warnings") or []]
    return Group(*parts)


def _rich_table(workload: dict[str, Any]) -> Table:
    """Two lines an arm, so that everything fits into 80 characters; an interval as plus-minus, as it is symmetric."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("arm", "bits/byte", "difference", "speed-up", "step time\nmemory", "verdict"):
        table.add_column(title, justify="left" if title in ("arm", "verdict") else "right", overflow="fold")
    for row, arm in zip(comparison_rows.rows(workload), comparison_rows.arms(workload), strict=True):
        text = {column: cell.text for column, cell in row.cells.items()}
        probability = "" if text["p"] == formats.MISSING else f"p {text['p']}"
        lines = (
            (text["arm"], "", ""),
            (text["bits"], _half(arm.get("bits_per_byte")), ""),
            (text["difference"], _half(arm.get("difference")), ""),
            (text["speedup"], "", ""),
            (text["overhead"], "" if text["memory"] == formats.MISSING else text["memory"], ""),
            (text["verdict"], probability, COLOURS.get(row.verdict, "")),
        )
        table.add_row(*(Text(first, style).append(f"\n{second}", "dim") for first, second, style in lines))
    return table


def _half(interval: Any) -> str:
    low, high = (formats.finite((interval or {}).get(end)) for end in ("low", "high"))
    return "" if low is None or high is None else f"±{(high - low) / 2:.4f}"
