"""Loss curves of a claim as a small SVG: the same bytes from the same numbers, on every machine and in every year.

Drawn here, and not by a plotting library, because the pages of the methods are compared byte for byte with what is
generated again, and a library's output changes with its version and the fonts it finds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 26, 14, 44
# Told apart by people who do not tell red from green; from Okabe and Ito's palette.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = (
    "text{font:12px sans-serif;fill:#333}.axis{stroke:#888}.grid{stroke:#8883}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)


def curves_svg(curves: Sequence[Mapping[str, Any]]) -> str:
    """Held-out bits per byte over steps: a line an arm (mean over seeds), its range over seeds as a band.

    Args:
        curves: "arm", "steps" and "mean", "low", "high" of equal lengths, at least one of one point or more.
    """
    steps = [step for curve in curves for step in curve["steps"]]
    values = [value for curve in curves for key in ("low", "high") for value in curve[key]]
    across = _Scale(0.0, max(steps), LEFT, WIDTH - RIGHT)
    up = _Scale(min(values), max(values), HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="held-out bits per byte over steps">',
        f"<style>{STYLE}</style>",
        *_axes(across, up),
    ]
    for index, curve in enumerate(curves):
        parts += _curve(curve, COLOURS[index % len(COLOURS)], across, up)
    for index, curve in enumerate(curves):
        y = TOP + 14 + 18 * index
        colour = COLOURS[index % len(COLOURS)]
        parts.append(
            f'<text x="{WIDTH - RIGHT - 26}" y="{y}" text-anchor="end">{escape(curve["arm"])}</text>'
            f'<line x1="{WIDTH - RIGHT - 20}" x2="{WIDTH - RIGHT}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" '
            f'stroke-width="3"/>'
        )
    return "\n".join([*parts, "</svg>", ""])


class _Scale:
    """From numbers to pixels, with round numbers at the ticks and a little air around what is drawn."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        room = (high - low) or abs(high) or 1.0
        step = 10 ** math.floor(math.log10(room / 3))
        self.step = next(step * factor for factor in (1, 2, 5, 10) if room / (step * factor) <= 5)
        self.low = math.floor(low / self.step + 1e-9) * self.step
        self.high = max(math.ceil(high / self.step - 1e-9) * self.step, self.low + self.step)
        self.start, self.stop = start, stop

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """(place, text) of every tick."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        count = round((self.high - self.low) / self.step)
        found = [self.low + index * self.step for index in range(count + 1)]
        return [(self(value), f"{value:,.{digits}f}") for value in found]


def _axes(across: _Scale, up: _Scale) -> list[str]:
    parts = []
    for y, text in up.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for x, text in across.ticks():
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{text}</text>')
    bottom, middle = HEIGHT - BOTTOM, (HEIGHT - BOTTOM + TOP) / 2
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{(WIDTH + LEFT - RIGHT) / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle">steps</text>')
    parts.append(
        f'<text x="14" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 14 {middle:.1f})">'
        "held-out bits per byte</text>"
    )
    return parts


def _curve(curve: Mapping[str, Any], colour: str, across: _Scale, up: _Scale) -> list[str]:
    def points(key: str) -> list[str]:
        return [f"{across(x):.1f},{up(y):.1f}" for x, y in zip(curve["steps"], curve[key], strict=True)]

    band = " ".join([*points("high"), *reversed(points("low"))])
    dots = [point.split(",") for point in points("mean")]
    return [
        f'<polygon points="{band}" fill="{colour}" fill-opacity="0.2"/>',
        f'<polyline points="{" ".join(points("mean"))}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in dots),
    ]
