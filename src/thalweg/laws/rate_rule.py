"""The best peak rate as a function of width, from runs at a few rates and widths.

    peak_lr(width) = peak_lr (at_width / width)^width_exponent

At each width the held-out loss is a parabola in the logarithm of the rate, drawn through the best rate and its two
neighbours; its lowest point is the best rate there. A line through the logarithms of those over the logarithm of width
gives level and exponent. Runs differ by chance, and the parabola is flat: where the interval of the exponent includes
the one known before, these runs cannot tell the two apart, that one is kept and the level alone is fitted.

Source of the carry over widths: Tensor Programs V (Yang et al. 2022, arXiv:2203.03466); its exponent for Adam is 1,
other optimizers and initialisations have others, so it is a number here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thalweg.errors import UserError

# Of the log loss, between two runs that share weights and the order of the data. Over seeds it is 0.008 (0.5M, 300
# steps of muon+linear, results/muon.json), and what runs share cancels; how much of it has not been measured.
SPREAD = 0.004
# A rate is known to this factor at best: losses are no parabolas.
_SHARPEST = math.log(1.1)


@dataclass(frozen=True)
class RateRule:
    """peak_lr at at_width, carried to other widths.

    Args:
        source: where it comes from, in a sentence.
        points: rows (width, rate, held-out loss) of the runs behind it that ended.
    """

    peak_lr: float
    at_width: int
    width_exponent: float
    source: str = ""
    points: tuple[tuple[float, float, float], ...] = ()

    def at(self, width: float) -> float:
        """The peak rate of a model of this width."""
        return self.peak_lr * (self.at_width / width) ** self.width_exponent


@dataclass(frozen=True)
class Best:
    """The best rate at one width: its logarithm with standard deviation, whether rates on both sides were worse."""

    width: int
    log_rate: float
    deviation: float
    inside: bool


def best(width: int, curve: Sequence[tuple[float, float | None]], spread: float = SPREAD) -> Best:
    """The lowest point of the parabola through the best rate and its neighbours.

    Args:
        curve: (rate, loss) of the runs at this width; a loss is None where the run diverged.
        spread: standard deviation of a run's log loss against the others'.

    Raises:
        UserError: no run ended.
    """
    rates, losses = zip(*sorted(curve), strict=True)
    logs = np.log(np.array(rates, float))
    values = np.array([math.inf if loss is None else math.log(loss) for loss in losses])
    lowest = int(np.argmin(values))
    if not math.isfinite(values[lowest]):
        raise UserError(f"No rate gave a finished run at width {width}.", fix="Try smaller rates.")
    if not 0 < lowest < len(logs) - 1:
        gap = float(np.diff(logs).max()) if len(logs) > 1 else math.log(2)
        return Best(width, float(logs[lowest]), gap, False)
    near = slice(lowest - 1, lowest + 2)
    if not np.isfinite(values[near]).all():  # a neighbour diverged: the best rate is not far, and there is no parabola
        return Best(width, float(logs[lowest]), float(np.diff(logs[near]).mean()) / 2, True)
    x, y = logs[near], values[near]
    moved = [_vertex(x, y + step) - _vertex(x, y) for step in spread * np.eye(3)]
    deviation = min(max(float(np.linalg.norm(moved)), _SHARPEST), float(np.diff(x).max()))
    return Best(width, _vertex(x, y), deviation, True)


def _vertex(x: np.ndarray, y: np.ndarray) -> float:
    """Where the parabola through three points is lowest, never beyond its outer points."""
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    if right <= left:  # no valley: the noise that is added to tell the error has bent it over
        return float(x[int(np.argmin(y))])
    middle = (x[0] + x[1]) / 2 - left * (x[2] - x[0]) / 2 / (right - left)
    return float(np.clip(middle, x[0], x[2]))


def fit(found: Sequence[Best], known: RateRule) -> RateRule:
    """The rule through the best rates of some widths.

    Args:
        found: of each width.
        known: the rule so far; its exponent is kept where these widths cannot tell, and its width.

    Raises:
        UserError: nothing to fit.
    """
    if not found:
        raise UserError("A rule of rates needs the best rate of one width at least.")
    u = np.array([math.log(one.width / known.at_width) for one in found])
    y, weight = np.array([one.log_rate for one in found]), np.array([one.deviation**-2 for one in found])
    exponent, told = known.width_exponent, "there is one width only"
    if len(set(u)) > 1:
        center = float(weight @ u / weight.sum())
        bend = float(weight @ (u - center) ** 2)
        slope, deviation = -float(weight @ ((u - center) * y)) / bend, bend**-0.5
        low, high = slope - 1.96 * deviation, slope + 1.96 * deviation
        told = f"these widths alone would say {slope:.2f} ({low:.2f} to {high:.2f})"
        if not low <= known.width_exponent <= high:
            exponent = slope
    kept = exponent == known.width_exponent
    level = float(weight @ (y + exponent * u) / weight.sum())
    at = ", ".join(f"{math.exp(one.log_rate):.3g} at width {one.width}" for one in found)
    edge = [str(one.width) for one in found if not one.inside]
    source = f"best {at}; the exponent {exponent:.2g} is {'kept, ' if kept else 'measured: '}{told}"
    if edge:
        source += f"; at width {' and '.join(edge)} the best rate lies at the edge of those tried"
    return RateRule(float(f"{math.exp(level):.3g}"), known.at_width, float(f"{exponent:.3g}"), source)
