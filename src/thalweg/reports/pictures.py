"""What the house's matplotlib figures share: colours, panels, the legend, and how a figure is written.

Figures are made without pyplot: no window, no global state, nothing to close. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.reports.formats import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, FAILED = "#1c2427", "#57646a", "#e6eae8", "#ad2318"
# (light, dark) hues; the first is grey. Beyond the last the hues begin again with another dash.
PALETTE = (
    ("#57646a", "#9fadb1"),
    ("#0b6e8a", "#5cc0dc"),
    ("#b4530a", "#f2a663"),
    ("#6b4fa0", "#b9a2ec"),
    ("#b0246e", "#f08dbb"),
    ("#5c8000", "#b5cf5a"),
    ("#2b50c8", "#8fa8ff"),
    ("#7a3b1d", "#d79a80"),
    ("#00806f", "#4fd1c0"),
)
DASHES = ("-", "--", ":", "-.")
SYMBOLS = ("o", "s", "D", "^", "P", "p", "h", "*")
WIDTH, COLUMNS = 7.5, 3


def panels(count: int, height: float) -> tuple[Figure, list[Any]]:
    """A figure with so many panels, three in a row at most, each row `height` inches high, on one vertical axis."""
    from matplotlib.figure import Figure

    rows, columns = -(-count // COLUMNS), min(count, COLUMNS)
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained", facecolor="white")
    drawn = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for empty in drawn[count:]:
        empty.set_axis_off()
    for axes in drawn[:count]:
        dress(axes)
    return figure, drawn[:count]


def dress(axes: Axes) -> None:
    """A faint grid behind what is drawn, and two quiet axes."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)


def legend(figure: Figure, axes: Axes) -> None:
    """Above the panels, where it hides no curve."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        shortened = [short(label) for label in labels]
        columns = 1 if max(map(len, shortened)) > 40 else 2
        figure.legend(handles, shortened, loc="outside upper left", ncols=columns, frameon=False, fontsize=8.5)


def plain(text: str) -> str:
    """A label that matplotlib does not read as mathematics."""
    return clean(text).replace("$", r"\$")


def short(name: str) -> str:
    """A name that a legend has room for."""
    return name if len(name) <= 48 else name[:47] + "…"


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as its ending says (.svg, .png, .pdf); the same figure gives the same bytes."""
    import matplotlib

    path = Path(path)
    with matplotlib.rc_context({"svg.hashsalt": "thalweg"}):
        # A date would make every file new; each format has its own word for it.
        dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        figure.savefig(path, dpi=160, metadata=dated.get(path.suffix))
    return path


def svg(figure: Figure) -> str:
    """A figure as the `<svg>` element of a page. Text is drawn as paths, so no name in it is ever read as HTML."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "thalweg", "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
