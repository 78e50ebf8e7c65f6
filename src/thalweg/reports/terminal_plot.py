"""Curves drawn with plain characters, for a terminal.

Each curve has a character of its own. In every column it fills the rows between its lowest and its highest value there,
so that a jump is a line and not a gap; where curves lie on each other, their characters take turns.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from itertools import pairwise

MARKS = "*o+x#@%&=~" + string.ascii_letters.replace("o", "").replace("x", "")
NARROWEST, LOWEST = 12, 4

Points = Sequence[tuple[float, float]]


def draw(
    curves: Mapping[str, Points], *, width: int, height: int = 17, x_label: str = "", y_label: str = "", top: float
) -> str:
    """The curves over the x from 0 to their last point, with axes and a legend.

    Args:
        curves: by name, points (x, y) with rising x >= 0 and finite y in [0, top].
        width, height: of the whole picture in columns, and of the curves' part in rows.
        x_label, y_label: what the axes count; y_label stands above the picture.
        top: the value of the uppermost row; the lowest is 0.
    """
    height = max(height, LOWEST)
    ticks = {row: f"{top * (1 - row / (height - 1)):.3g}" for row in _ticked(height)}
    margin = max(map(len, ticks.values()))
    columns = max(width - margin - 2, NARROWEST)
    end = max(points[-1][0] for points in curves.values())
    here: dict[tuple[int, int], list[str]] = {}
    for mark, points in zip(_marks(len(curves)), curves.values(), strict=True):
        for column, (low, high) in enumerate(_spans(points, columns, end)):
            for row in range(_row(high, top, height), _row(low, top, height) + 1):
                here.setdefault((row, column), []).append(mark)
    lines = [y_label] if y_label else []
    for row in range(height):
        cells = (here.get((row, column), " ") for column in range(columns))
        drawn = "".join(marks[column % len(marks)] for column, marks in enumerate(cells))
        lines.append(f"{ticks.get(row, ''):>{margin}} |{drawn}".rstrip())
    lines.append(f"{'':>{margin}} +{'-' * columns}")
    last = f"{end:.6g} {x_label}".rstrip()
    lines.append(f"{'':>{margin}}  0{last:>{columns - 1}}")
    legend = [f"{mark} {name}" for mark, name in zip(_marks(len(curves)), curves, strict=True)]
    return "\n".join([*lines, *_wrapped(legend, width)])


def _ticked(height: int) -> list[int]:
    """The rows that bear a number: top, bottom, and about every fourth between them."""
    parts = max(1, (height - 1) // 4)
    return sorted({round(part * (height - 1) / parts) for part in range(parts + 1)})


def _marks(count: int) -> str:
    return (MARKS * (count // len(MARKS) + 1))[:count]


def _row(value: float, top: float, height: int) -> int:
    return round((1.0 - min(max(value / top, 0.0), 1.0)) * (height - 1))


def _spans(points: Points, columns: int, end: float) -> list[tuple[float, float]]:
    """For each column the lowest and the highest value of the line through the points, from edge to edge."""
    edges = [end * column / columns for column in range(columns + 1)]
    at_edges = _interpolated(points, edges)
    spans = [[min(pair), max(pair)] for pair in pairwise(at_edges)]
    for x, y in points:
        span = spans[min(int(x / end * columns), columns - 1)]
        span[0], span[1] = min(span[0], y), max(span[1], y)
    return [(low, high) for low, high in spans]


def _interpolated(points: Points, places: Sequence[float]) -> list[float]:
    """The line through the points at rising places; beyond its ends it goes on as it is there."""
    values, index = [], 0
    for place in places:
        while index + 1 < len(points) and points[index + 1][0] < place:
            index += 1
        (left, low), (right, high) = points[index], points[min(index + 1, len(points) - 1)]
        share = (place - left) / (right - left) if right > left else 0.0
        values.append(low + (high - low) * min(max(share, 0.0), 1.0))
    return values


def _wrapped(entries: Sequence[str], width: int) -> list[str]:
    """The entries side by side, on as many lines as they need."""
    lines = [entries[0]]
    for entry in entries[1:]:
        joined = f"{lines[-1]}   {entry}"
        if len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(entry)
    return lines
