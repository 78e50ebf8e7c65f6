"""Which proxies a budget pays for: sizes times numbers of tokens, the dearest corners left out.

    sizes    rungs of the ladder, each half as large again as the one before or more
    tokens   T, 2 T, 4 T, ...
    points   (i, j) with i + j up to a limit: all but the corner that is dear in both

The larger of the grids whose runs are long enough is taken, and T is the most that fits the budget. Among grids of one
form those sizes win whose middle has about as many tokens as the law pairs with it, since there the laws will be used.
Everything here is a function of its arguments: a price for a run, and how many run at a time.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """So many sizes and numbers of tokens, and the largest i + j."""

    sizes: int
    lengths: int
    most: int


# The larger the better where they fit: 19, 13, 8 and 6 runs.
FORMS = (Form(5, 5, 5), Form(4, 4, 4), Form(3, 3, 3), Form(3, 3, 2))
SPACING = 1.5
# T is found to this factor; finer would be lost in the noise of the speeds.
_FINENESS = 1.02
_MOST_DOUBLINGS = 40


@dataclass(frozen=True)
class Proxy:
    """A size, by its place among the sizes offered, and the tokens to train it on."""

    size: int
    tokens: int


@dataclass(frozen=True)
class Grid:
    """The proxies, their base number of tokens T, and what they cost together."""

    proxies: tuple[Proxy, ...]
    base: int
    cost: float


# Price of a proxy of a grid of base T, or of a sweep: seconds of one of the places that work at a time, or FLOPs.
Price = Callable[[Proxy, int | None], float]


def spaced(sizes: Sequence[float], start: int) -> list[int]:
    """Places of sizes from `start` on, each at least SPACING times the one before."""
    found = [start]
    for place in range(start + 1, len(sizes)):
        if sizes[place] >= SPACING * sizes[found[-1]]:
            found.append(place)
    return found


def together(costs: Sequence[float], places: int, busy: Sequence[float] = ()) -> float:
    """When all are done, if each free place takes the dearest that is left; some are `busy` for so long."""
    ends = [*busy, *[0.0] * (places - len(busy))]
    heapq.heapify(ends)
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)


def runs(form: Form, places: Sequence[int], base: int) -> tuple[Proxy, ...]:
    """The proxies of a form with sizes at these places."""
    pairs = ((i, j) for i in range(form.sizes) for j in range(form.lengths) if i + j <= form.most)
    return tuple(Proxy(places[i], base * 2**j) for i, j in pairs)


def choose(
    sizes: Sequence[float],
    price: Price,
    budget: float,
    places: int,
    *,
    least: int,
    enough: int,
    paired: Callable[[float], float],
    most: float = math.inf,
) -> Grid | None:
    """The grid for a budget, or None where it does not pay for the smallest.

    Args:
        sizes: parameters of the sizes offered, growing.
        price: of a proxy of a grid with a certain T.
        budget: in the price's unit, for all places working at the same time.
        places: runs at a time.
        least, enough: T that is the least to be sensible, and from which on more points are better than longer runs.
        paired: tokens that belong to so many parameters at least compute.
        most: tokens of the longest run.
    """
    for form in FORMS:
        found = []
        for start in range(len(sizes)):
            rungs = spaced(sizes, start)[: form.sizes]
            if len(rungs) < form.sizes:
                continue
            grid = _longest(form, rungs, price, budget, places, least, most)
            if grid is not None and (grid.base >= enough or form.sizes == FORMS[-1].sizes):
                middle = grid.base * 2 ** ((form.lengths - 1) / 2)
                apart = abs(math.log(middle / paired(sizes[rungs[form.sizes // 2]])))
                # Runs that are too short say little: sizes that leave them so come last.
                found.append(((grid.base < enough, apart, start), grid))
        if found:
            return min(found, key=lambda one: one[0])[1]
    return None


def smallest(sizes: Sequence[float], price: Price, places: int, least: int) -> Grid | None:
    """The least grid that is sensible, whatever it costs; None where too few sizes are offered."""
    rungs = spaced(sizes, 0)[: FORMS[-1].sizes]
    return _priced(FORMS[-1], rungs, least, price, places) if len(rungs) == FORMS[-1].sizes else None


def _priced(form: Form, rungs: Sequence[int], base: int, price: Price, places: int) -> Grid:
    proxies = runs(form, rungs, base)
    return Grid(proxies, base, together([price(proxy, base) for proxy in proxies], places))


def _longest(
    form: Form, rungs: Sequence[int], price: Price, budget: float, places: int, least: int, most: float
) -> Grid | None:
    """The grid of these rungs with the largest T that fits."""
    best = _priced(form, rungs, least, price, places)
    if best.cost > budget:
        return None
    low, high = 0.0, float(_MOST_DOUBLINGS)
    while high - low > math.log2(_FINENESS):
        middle = (low + high) / 2
        grid = _priced(form, rungs, round(least * 2**middle), price, places)
        if grid.cost <= budget and grid.base * 2 ** (form.lengths - 1) <= most:
            low, best = middle, grid
        else:
            high = middle
    return best


@dataclass(frozen=True)
class Sweep:
    """Runs that find the best rate: places of the sizes, rates each, and the tokens of every run."""

    sizes: tuple[int, ...]
    rates: int
    tokens: int
    cost: float


# (places among the grid's sizes, rates), the larger the better where its runs are long enough.
SWEEPS = (((0, 2, 4), 5), ((0, 2), 5), ((0, 2), 3), ((0, 1), 3))


def choose_sweep(
    rungs: Sequence[int], price: Price, budget: float, places: int, *, least: int, enough: int, most: float = math.inf
) -> Sweep:
    """The sweep for a budget; the smallest where it pays for none, so that its cost tells.

    Args:
        rungs: places of the grid's sizes.
        price, budget, places, least, enough: as for `choose`.
        most: tokens of a run beyond which the best rate is that of any run of the grid.
    """
    fitting = []
    for among, rates in SWEEPS:
        if among[-1] >= len(rungs):
            continue
        sizes = tuple(rungs[index] for index in among)
        tokens = _longest_sweep(sizes, rates, price, budget, places, least, most)
        fitting.append(_priced_sweep(sizes, rates, tokens, price, places))
        if fitting[-1].cost <= budget and tokens >= min(enough, most):
            return fitting[-1]
    return fitting[-1]


def _priced_sweep(sizes: tuple[int, ...], rates: int, tokens: int, price: Price, places: int) -> Sweep:
    # The smallest has no room for one more at each size, for where the best of them lies at an edge.
    each = rates if rates == SWEEPS[-1][1] else rates + 1
    costs = [price(Proxy(size, tokens), None) for size in sizes for _ in range(each)]
    return Sweep(sizes, rates, tokens, together(costs, places))


def _longest_sweep(
    sizes: tuple[int, ...], rates: int, price: Price, budget: float, places: int, least: int, most: float
) -> int:
    tokens = float(least)
    while tokens * _FINENESS <= most:
        if _priced_sweep(sizes, rates, round(tokens * _FINENESS), price, places).cost > budget:
            break
        tokens *= _FINENESS
    return round(tokens)
