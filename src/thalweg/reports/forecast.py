"""A forecast as a picture and as a page: measured losses, the curve foretold with its band, the rates beneath.

Everything is drawn in bits per byte, from the plain data of `sessions.predict.Prediction.to_dict()`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.errors import RunError
from thalweg.reports import document
from thalweg.reports import pictures as house
from thalweg.reports.formats import clean
from thalweg.runs import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = dict[str, Any]
_FORECAST, _BEST = house.PALETTE[1][0], house.PALETTE[2][0]
_DOTS = [house.PALETTE[index][0] for index in (0, 3, 5, 4, 6, 7, 8)]


def figure(prediction: Table) -> Figure:
    """The forecast's curve and band, measured losses, the best schedule's curve, and their rates."""
    from matplotlib.figure import Figure

    scale = prediction["bits_per_nat"]
    made = Figure(figsize=(house.WIDTH, 5.6), layout="constrained", facecolor="white")
    upper, lower = made.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for number, run in enumerate(prediction["runs"]):
        hue = _DOTS[number % len(_DOTS)]
        label = house.plain(f"{Path(run['folder']).name}: {run['schedule']}, measured")
        losses = [loss * scale for loss in run["losses"]]
        upper.plot(run["steps"], losses, ".", color=hue, markersize=4, label=label)
    for curve, hue, dash in ((prediction["forecast"], _FORECAST, "-"), (prediction["best_forecast"], _BEST, "--")):
        if curve is None:
            continue
        steps, label = curve["steps"], house.plain(f"{curve['schedule']}, forecast")
        upper.plot(steps, [loss * scale for loss in curve["losses"]], dash, color=hue, label=label)
        low, high = ([loss * scale for loss in curve[end]] for end in ("low", "high"))
        upper.fill_between(steps, low, high, color=hue, alpha=0.15, linewidth=0)
        lower.plot(steps, curve["rates"], dash, color=hue)
    upper.set_ylim(*_focus(prediction))
    upper.set_ylabel("bits per byte")
    lower.set_ylabel("learning rate")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("steps")
    for axes in (upper, lower):
        house.dress(axes)
    house.legend(made, upper)
    return made


def _focus(prediction: Table) -> tuple[float, float]:
    """Limits that show where curves end: the steep beginning is cut off."""
    curves = [curve for curve in (prediction["forecast"], prediction["best_forecast"]) if curve is not None]
    lowest = min(min(curve["low"]) for curve in curves)
    highest = max(curve["high"][len(curve["high"]) // 10] for curve in curves)
    margin = 0.05 * (highest - lowest)
    return (lowest - margin) * prediction["bits_per_nat"], (highest + margin) * prediction["bits_per_nat"]


def page(prediction: Table) -> str:
    """One HTML file with the picture, the standings and the notes inside; no script."""
    return document.still(
        "forecast",
        house.svg(figure(prediction)),
        prediction=prediction,
        runs=[clean(f"{run['folder']}: {run['schedule']}") for run in prediction["runs"]],
        scale=prediction["bits_per_nat"],
    )


def write(prediction: Table, path: Path) -> Path:
    """Write the forecast as the path's ending says: .png or .svg, .html, .json.

    Raises:
        RunError: another ending, or a place where no file can be written.
    """
    check_path(path)
    try:
        WRITERS[path.suffix.lower()](prediction, path)
    except OSError as error:
        raise RunError(f"the forecast cannot be written: {error.strerror}", where=str(path)) from None
    return path


def check_path(path: Path) -> None:
    """Refuse an ending that means nothing here, before anything is fitted."""
    if path.suffix.lower() not in WRITERS:
        raise RunError(
            f"a forecast cannot be written as {path.suffix or 'a file without an ending'}",
            where=str(path),
            fix=f"End the name in {', '.join(WRITERS)}.",
        )


def _picture(prediction: Table, path: Path) -> None:
    house.save(figure(prediction), path)


WRITERS: dict[str, Callable[[Table, Path], None]] = {
    ".png": _picture,
    ".svg": _picture,
    ".html": lambda prediction, path: write_text(path, page(prediction)),
    ".json": lambda prediction, path: write_text(path, json.dumps(prediction, indent=1) + "\n"),
}
