"""One page for the branches of a trunk: what each budget reached, and the curves, drawn on one axis.

Self-contained: a table and one picture inside the file, no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.errors import RunError
from thalweg.reports import document, pictures
from thalweg.runs import Run, read_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_branches(folders: Sequence[Path], out: Path) -> Path:
    """Write `branches.html` into `out` for finished runs that share an ancestor; returns its path.

    Raises:
        RunError: a folder that is no run, or has no evaluation yet.
    """
    branches = [_branch(folder) for folder in folders]
    path = out / "branches.html"
    write_text(path, document.still("branches", pictures.svg(_figure(branches)), branches=branches))
    return path


def _branch(folder: Path) -> dict[str, Any]:
    run = Run.open(folder)
    evaluations = list(run.metrics("evaluation"))
    if not evaluations:
        raise RunError("the run has no evaluation yet", where=str(folder), fix="Finish it first.")
    ancestors = read_json(folder / "lineage.json")
    start = run.recipe.start
    before = start.tokens if start else 0
    last = evaluations[-1]
    return {
        "name": folder.name,
        "schedule": str(run.recipe.schedule),
        "from_step": ancestors[-1]["step"],
        "tokens": before + last["tokens"],
        "bits_per_byte": last["held_out_bits_per_byte"],
        "low": last["low"],
        "high": last["high"],
        "curve": [(before + line["tokens"], line["held_out_bits_per_byte"]) for line in evaluations],
        "trunk": _trunk(Path(ancestors[-1]["run"])),
    }


def _trunk(folder: Path) -> list[tuple[int, float]]:
    """The held-out curve of the run that was branched off, where its folder is still there."""
    if not (folder / "recipe.toml").is_file():
        return []
    run = Run.open(folder)
    start = run.recipe.start
    before = start.tokens if start else 0
    return [(before + line["tokens"], line["held_out_bits_per_byte"]) for line in run.metrics("evaluation")]


def _figure(branches: list[dict[str, Any]]) -> Figure:
    """Held-out bits per byte over all tokens, trunk and branches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for trunk in {tuple(branch["trunk"]) for branch in branches if branch["trunk"]}:
        axes.plot(*zip(*trunk, strict=True), color="0.6", label="trunk")
    for branch in branches:
        axes.plot(*zip(*branch["curve"], strict=True), marker="o", markersize=3, label=branch["name"])
    axes.set_xlabel("tokens, from the beginning")
    axes.set_ylabel("held-out bits per byte")
    axes.legend()
    return figure
