"""What the benchmarks share: progress on standard error, markdown tables, and medians with their range."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def say(text: str) -> None:
    """One line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A markdown table with padded cells; columns after the first are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| "
        + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Median (least to largest)."""
    middle, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def verdict(value: float, goal: float, *, at_least: bool = True) -> str:
    """Whether a goal is met, in a word."""
    return "met" if (value >= goal if at_least else value <= goal) else "missed"


def machine() -> dict[str, Any]:
    """Where the numbers were measured."""
    import torch
    import transformers

    from thalweg.planner.profile import profile

    found = profile()
    return {
        "processor": found.processor,
        "cores": found.cores,
        "threads": found.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def finish(text: str, numbers: dict[str, Any], path: Path | None) -> None:
    """Print the table, with the machine beneath, and write the JSON where one is wanted."""
    where = machine()
    print(text)
    print("\n" + ", ".join(f"{key} {value}" for key, value in where.items()))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": where, **numbers}, indent=1) + "\n", encoding="utf-8")
