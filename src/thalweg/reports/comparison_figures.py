"""A comparison's charts as matplotlib figures, for PNG and SVG files: on a light ground, with a legend inside.

`save` writes them so that the same results give the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg.reports import comparison_rows, comparison_series
from thalweg.reports.comparison_series import Table
from thalweg.reports.formats import clean
from thalweg.reports.pictures import (
    COLUMNS,
    DASHES,
    FAILED,
    INK,
    MUTED,
    PALETTE,
    SYMBOLS,
    legend,
    panels,
    plain,
    save,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves", "differences", "save", "tuning"]

VERDICT_COLOURS = {"better": "#1f6f43", "worse": "#b4530a", "tied": "#0b6e8a", "undecided": "#6b4fa0"}


def curves(results: Table, workload: int = 0, axis: str = "steps") -> Figure:
    """Held-out bits per byte of each arm: the mean over seeds and the range between the lowest and the highest.

    Args:
        results: what results.json holds.
        workload: its place in the list of workloads.
        axis: "steps", "tokens" or "seconds".
    """
    drawn = comparison_series.curves(comparison_rows.workloads(results)[workload])
    figure, (axes,) = panels(1, 4.2)
    for series in drawn["series"]:
        hue, line = PALETTE[series["hue"]][0], series["along"][axis]
        if line["x"]:
            style = {"color": hue, "linestyle": DASHES[series["dash"] % len(DASHES)]}
            axes.plot(line["x"], line["y"], label=plain(series["name"]), marker="o", markersize=2.5, **style)
        if series["seeds"] > 1:
            axes.fill_between(line["x"], line["low"], line["high"], color=hue, alpha=0.18, linewidth=0)
        for number, run in enumerate(series["failed"]):
            at = run[axis]
            label = "" if line["x"] or number else plain(f"{series['name']} (failed)")
            axes.plot(at["x"], at["y"], color=hue, linestyle=":", linewidth=1, label=label)
            axes.plot(at["x"][-1:], at["y"][-1:], color=FAILED, marker="x", linestyle="none")
    if drawn["focus"]:
        axes.set_ylim(*drawn["focus"])
    axes.set_xlabel(axis)
    axes.set_ylabel("held-out bits per byte")
    legend(figure, axes)
    return figure


def differences(results: Table, workload: int = 0) -> Figure:
    """Each arm minus the baseline: mean with its interval, a dot a seed, the zero line and the margin of a tie.

    Args:
        results: what results.json holds.
        workload: its place in the list of workloads.
    """
    chosen = comparison_rows.workloads(results)[workload]
    series, margin = comparison_series.differences(chosen)["series"], comparison_series.margin(results, chosen)
    figure, (axes,) = panels(1, 1.1 + 0.6 * len(series))
    axes.axvline(0, color=MUTED, linewidth=1)
    if margin:
        axes.axvspan(-margin, margin, color=PALETTE[1][0], alpha=0.12, linewidth=0)
    for place, one in enumerate(series):
        hue = VERDICT_COLOURS.get(one["verdict"], MUTED)
        axes.plot(one["dots"], [place] * len(one["dots"]), "o", color=hue, alpha=0.35, markersize=5)
        if one["mean"] is None:
            continue
        known = one["low"] is not None and one["high"] is not None
        ends = [[one["mean"] - one["low"]], [one["high"] - one["mean"]]] if known else None
        axes.errorbar([one["mean"]], [place], xerr=ends, fmt="D", color=hue, capsize=4, markersize=6, linewidth=1.8)
    labels = [plain(f"{short(one['name'])}\n{one['verdict']}") for one in series]
    axes.set_yticks(range(len(series)), labels=labels)
    axes.set_ylim(len(series) - 0.5, -0.5)
    axes.set_xlabel(plain(f"bits per byte, arm minus {short(_baseline(chosen))} (left is better)"))
    return figure


def tuning(results: Table, workload: int = 0) -> Figure:
    """A panel a searched value: bits per byte of every trial over it, a star for the winner, a cross for a failure.

    Args:
        results: what results.json holds.
        workload: its place in the list of workloads.
    """
    searched = comparison_series.tuning(comparison_rows.workloads(results)[workload])
    figure, drawn = panels(max(1, len(searched)), 3.2)
    for axes, panel in zip(drawn, searched, strict=False):
        if panel["log"]:
            axes.set_xscale("log")
        for series in panel["series"]:
            _trials(axes, series, panel["top"])
        axes.set_xlabel(plain(short(panel["title"])))
    if not searched:
        drawn[0].text(0.5, 0.5, "nothing was tuned", ha="center", color=MUTED, transform=drawn[0].transAxes)
    for axes in drawn[::COLUMNS]:
        axes.set_ylabel("held-out bits per byte")
    legend(figure, drawn[0])
    return figure


def _trials(axes: Axes, series: Table, top: float | None) -> None:
    """One arm's trials; those that failed or are far above the others stand at the upper edge."""
    hue, symbol = PALETTE[series["hue"]][0], SYMBOLS[series["arm"] % len(SYMBOLS)]
    edge = axes.get_xaxis_transform()
    inside = [trial for trial in series["trials"] if trial["y"] is not None and trial["y"] <= (top or 0)]
    x, y = [_place(trial) for trial in inside], [trial["y"] for trial in inside]
    axes.scatter(x, y, color=hue, marker=symbol, s=24, label=plain(series["name"]))
    for trial in series["trials"]:
        if trial["won"] and trial["y"] is not None:
            axes.scatter([_place(trial)], [trial["y"]], color=hue, marker="*", s=160, edgecolor=INK, zorder=3)
        if trial["y"] is None or trial["y"] > (top or 0):
            mark, shade = ("x", FAILED) if trial["y"] is None else ("^", hue)
            axes.plot([_place(trial)], [0.98], color=shade, marker=mark, transform=edge, clip_on=False)


def _place(trial: Table) -> float | str:
    return plain(short(trial["x"])) if isinstance(trial["x"], str) else trial["x"]


def _baseline(workload: Table) -> str:
    listed = comparison_rows.arms(workload)
    return clean(listed[0].get("name", "")) if listed else "the baseline"
