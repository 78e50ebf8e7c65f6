"""The best peak rate at a few widths: rates a factor of two apart around the known rule, one more beyond an edge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from thalweg.arena.grid import Sweep
from thalweg.laws import rate_rule
from thalweg.laws.rate_rule import RateRule

FACTOR = 2.0
Key = tuple[int, float]  # place of the size, rate
# Bits a byte by key; None where a run diverged. What could not be run is left out.
Perform = Callable[[list[Key]], Mapping[Key, float | None]]


def sweep_rates(sweep: Sweep, widths: Mapping[int, int], known: RateRule, perform: Perform) -> RateRule:
    """Run a sweep and fit the rule.

    Args:
        widths: of the sizes, by place.
        known: the rule to start from.
        perform: runs what it is asked for.
    """
    around = sweep.rates // 2
    steps = range(-around, around + 1)
    losses = dict(
        perform([(size, rounded(known.at(widths[size]) * FACTOR**step)) for size in sweep.sizes for step in steps])
    )
    beyond = [(size, rate) for size in sweep.sizes if (rate := beyond_edge(_curve(losses, size))) is not None]
    if beyond:
        losses |= perform(beyond)
    best = [rate_rule.best(widths[size], _curve(losses, size)) for size in sweep.sizes]
    points = tuple((float(widths[size]), rate, loss) for (size, rate), loss in sorted(losses.items()) if loss)
    rule = rate_rule.fit(best, known)
    return replace(rule, source=f"{len(losses)} runs of {sweep.tokens:,} tokens: {rule.source}", points=points)


def beyond_edge(curve: list[tuple[float, float | None]]) -> float | None:
    """The rate to try next where the best of a curve is its first or last; None where it lies inside."""
    heights = [float("inf") if loss is None else loss for _, loss in curve]
    place = heights.index(min(heights))
    if 0 < place < len(curve) - 1:
        return None
    return rounded(curve[place][0] * (1 / FACTOR if place == 0 else FACTOR))


def rounded(rate: float) -> float:
    """Three digits: what is written is what is run."""
    return float(f"{rate:.3g}")


def _curve(losses: Mapping[Key, float | None], size: int) -> list[tuple[float, float | None]]:
    """(rate, loss) at one size, in the order of the rates."""
    return [(rate, loss) for (at, rate), loss in sorted(losses.items()) if at == size]
