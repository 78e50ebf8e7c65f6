"""Laws as matplotlib figures: measured points, the curve fitted to them, and the band where new runs should fall.

One function a law; each returns a figure that `pictures.save` writes as PNG, SVG or PDF. Bands are 95%
intervals of a new run, drawn where the law was fitted here and knows them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.errors import UserError
from thalweg.laws.asymptote import AsymptoteLaw
from thalweg.laws.chinchilla import ChinchillaLaw
from thalweg.laws.data_filtering import FilteringLaw
from thalweg.laws.moe_sparsity import SparsityLaw
from thalweg.laws.pareto import Candidate, frontier
from thalweg.reports import pictures as house

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Sequence[float]] | np.ndarray
_GRID = 60
_HEIGHT = 4.2


def chinchilla(law: ChinchillaLaw, points: Rows) -> Figure:
    """Loss over model size, a curve for every number of tokens that was measured.

    Args:
        law: of laws.chinchilla.
        points: rows (parameters, tokens, loss).
    """
    table = _rows(points, 3)
    figure, axes = _panel("parameters", "loss")
    sizes = _span(table[:, 0])
    for place, tokens in enumerate(np.unique(table[:, 1])):
        here = table[table[:, 1] == tokens]
        _curve(axes, place, f"{_short(tokens)} tokens", sizes, law.predict(sizes, tokens), here[:, 0], here[:, 2])
        if len(law.refits):
            _band(axes, place, sizes, [law.interval(size, tokens) for size in sizes])
    house.legend(figure, axes)
    return figure


def infinite_compute(laws: Mapping[str, AsymptoteLaw], points: Mapping[str, Rows], quantity: str) -> Figure:
    """Losses that level off, and where each ends.

    Args:
        laws: by the name of the recipe.
        points: rows (x, loss) of each.
        quantity: what x is, as "parameters (billions)" or "members".
    """
    figure, axes = _panel(quantity, "loss")
    for place, (name, law) in enumerate(laws.items()):
        table = _rows(points[name], 2)
        x = _span(table[:, 0], beyond=4.0)
        _curve(axes, place, f"{name}, ends at {law.E:.4g}", x, law.predict(x), table[:, 0], table[:, 1])
        axes.axhline(law.E, color=_hue(place), linestyle=":", linewidth=1)
        if law.fit is not None:
            _band(axes, place, x, [law.interval(each) for each in x])
    house.legend(figure, axes)
    return figure


def data_filtering(law: FilteringLaw, samples: tuple[float, float], points: Rows | None = None) -> Figure:
    """Predicted error of the nested unions over samples seen; a star where the best union changes.

    Args:
        law: of laws.data_filtering.
        samples: from how many to how many.
        points: rows (bucket, samples, error) of runs on one bucket; those of the best bucket are drawn.
    """
    figure, axes = _panel("samples seen", "error")
    x = np.geomspace(*samples, _GRID)
    chosen = [law.select(each) for each in x]
    pools = _nested(law)
    for place, pool in enumerate(pools):
        label = "best bucket" if place == 0 else f"best {place + 1} buckets"
        _curve(axes, place, label, x, [one.errors[place] for one in chosen])
        if law.fit is not None:
            _band(axes, place, x, [law.interval(each, pool) for each in x])
    if points is not None:
        table = _rows(points, 3)
        alone = table[table[:, 0] == pools[0][0]]
        axes.plot(alone[:, 1], alone[:, 2], "o", color=_hue(0), markersize=4)
    for at, before, after in zip(x[1:], chosen[:-1], chosen[1:], strict=True):
        if len(before.buckets) != len(after.buckets):
            axes.plot([at], [min(after.errors)], "*", color=house.INK, markersize=11)
    house.legend(figure, axes)
    return figure


def moe_sparsity(law: SparsityLaw, points: Rows) -> Figure:
    """Task loss over tokens per total parameter, a curve for every active size; a line at the best if there is one.

    Args:
        law: of laws.moe_sparsity.
        points: rows (active parameters, tokens per total parameter, task loss).
    """
    table = _rows(points, 3)
    figure, axes = _panel("tokens per parameter (of all)", "task loss")
    x = _span(table[:, 1])
    for place, (active, here) in enumerate(_families(table)):
        _curve(axes, place, f"{_short(active)} active", x, [law.predict(active, each) for each in x], *here[:, 1:].T)
        _band(axes, place, x, [law.interval(active, each) for each in x])
    try:
        best, low, high = law.optimum()
        axes.axvline(best, color=house.INK, linewidth=1)
        axes.axvspan(low, high, color=house.INK, alpha=0.07, linewidth=0)
    except UserError:
        pass  # A task that does not turn has no line, and the curve shows it.
    house.legend(figure, axes)
    return figure


def roofline_codesign(candidates: Sequence[Candidate], seconds: float = math.inf, memory: float = math.inf) -> Figure:
    """Predicted loss over predicted latency of every shape, and the shapes within the limits that nothing beats.

    Args:
        candidates: of laws.pareto.price().
        seconds: limit of latency.
        memory: limit in bytes.
    """
    figure, axes = _panel("seconds", "loss")
    kinds = {"dense": [one for one in candidates if not one.architecture.routed]}
    kinds["experts"] = [one for one in candidates if one.architecture.routed]
    for place, (name, kind) in enumerate(kinds.items()):
        if kind:
            at = [one.seconds for one in kind], [one.loss for one in kind]
            axes.plot(*at, house.SYMBOLS[place], color=_hue(place), alpha=0.45, markersize=4, label=name)
    kept = frontier(candidates, seconds, memory)
    axes.plot(
        [one.seconds for one in kept],
        [one.loss for one in kept],
        color=house.INK,
        drawstyle="steps-post",
        label="nothing better",
    )
    if math.isfinite(seconds):
        axes.axvline(seconds, color=house.FAILED, linestyle=":", linewidth=1)
    house.legend(figure, axes)
    return figure


def _nested(law: FilteringLaw) -> list[tuple[int, ...]]:
    order = sorted(range(len(law.buckets)), key=lambda bucket: law.buckets[bucket].b)
    return [tuple(order[: count + 1]) for count in range(len(order))]


def _families(table: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Models of about the same active size (within 5%: routers differ), by that size."""
    found: list[list[np.ndarray]] = []
    for row in table[np.argsort(table[:, 0])]:
        if not found or row[0] > 1.05 * found[-1][0][0]:
            found.append([])
        found[-1].append(row)
    return [(float(np.mean([row[0] for row in family])), np.array(family)) for family in found]


def _panel(across: str, up: str) -> tuple[Figure, Axes]:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, (axes,) = house.panels(1, _HEIGHT)
    axes.set_xscale("log")
    # Powers of ten alone would leave an axis of less than a decade without a number.
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(house.plain(across))
    axes.set_ylabel(house.plain(up))
    return figure, axes


def _curve(axes: Axes, place: int, label: str, x: Any, y: Any, at: Any = (), measured: Any = ()) -> None:
    axes.plot(x, y, house.DASHES[place // 8 % len(house.DASHES)], color=_hue(place), label=house.plain(label))
    axes.plot(at, measured, "o", color=_hue(place), markersize=4)


def _band(axes: Axes, place: int, x: Any, intervals: Sequence[tuple[float, float]]) -> None:
    low, high = np.transpose(intervals)
    axes.fill_between(x, low, high, color=_hue(place), alpha=0.15, linewidth=0)


def _hue(place: int) -> str:
    return house.PALETTE[1 + place % (len(house.PALETTE) - 1)][0]


def _span(values: np.ndarray, beyond: float = 1.5) -> np.ndarray:
    return np.geomspace(values.min() / 1.2, values.max() * beyond, _GRID)


def _short(amount: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if amount >= size:
            return f"{amount / size:.3g}{letter}"
    return f"{amount:.3g}"


def _rows(points: Rows, columns: int) -> np.ndarray:
    table = np.asarray(points, dtype=float)
    if table.ndim != 2 or table.shape[1] != columns or not len(table):
        raise UserError(f"Points to draw must be rows of {columns} numbers.")
    return table
