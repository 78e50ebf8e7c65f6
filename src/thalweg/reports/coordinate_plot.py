"""The coordinate check of muP as a figure: how far every activation has moved, over width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from thalweg.reports import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"standard": "one rate for all", "mup": "muP"}


def coordinate_figure(check: Mapping[str, Any]) -> Figure:
    """Two panels, standard and muP: mean change after the last step over width, a line a part.

    Args:
        check: what `mup-check.json` holds.
    """
    figure, panels = pictures.panels(2, 4.0)
    widths = check["widths"]
    for axes, (name, title) in zip(panels, TITLES.items(), strict=True):
        for place, (part, rows) in enumerate(check["changes"][name].items()):
            values = [row[-1] for row in rows]
            style = {"color": pictures.PALETTE[1 + place][0], "marker": pictures.SYMBOLS[place], "markersize": 4}
            axes.plot(widths, values, label=pictures.plain(part), **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.set_xlabel("width")
        axes.set_title(title, fontsize=10)
    panels[0].set_ylabel(f"mean change after {check['steps']} steps")
    pictures.legend(figure, panels[0])
    return figure
