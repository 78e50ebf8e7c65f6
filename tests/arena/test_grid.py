"""The chooser of grids: within the budget, never less than the least, the same for the same."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.arena.grid import FORMS, SPACING, Proxy, choose, choose_sweep, smallest, spaced, together

SIZES = [0.45e6, 0.7e6, 0.9e6, 1.5e6, 2.1e6, 2.8e6, 4.5e6, 7e6, 1e7, 1.4e7, 2e7]
LEAST = 100_000


def price(speed=1e10, overhead=0.5):
    """Seconds of a proxy on a machine of so many parameter-tokens a second."""
    return lambda proxy, base: proxy.tokens * SIZES[proxy.size] / speed + (base or 0) / 50_000 + overhead


def paired(n):
    return 3.0 * n


@settings(max_examples=60)
@given(st.floats(20, 1e6), st.floats(1e9, 1e13), st.integers(1, 8))
def test_a_grid_fits_its_budget(budget, speed, places):
    cost, terms = price(speed), {"least": LEAST, "enough": 4 * LEAST, "paired": paired}
    grid = choose(SIZES, cost, budget, places, **terms)
    least = smallest(SIZES, cost, places, LEAST)
    assert (grid is None) == (least.cost > budget)
    if grid is None:
        return
    assert grid == choose(SIZES, cost, budget, places, **terms)
    assert grid.cost <= budget
    assert grid.cost == together([cost(proxy, grid.base) for proxy in grid.proxies], places)
    assert grid.base >= LEAST
    sizes, lengths = ({getattr(proxy, name) for proxy in grid.proxies} for name in ("size", "tokens"))
    assert min(len(sizes), len(lengths)) >= 3
    assert sorted(lengths) == [grid.base * 2**j for j in range(len(lengths))]
    ordered = sorted(SIZES[size] for size in sizes)
    assert all(after >= SPACING * before for before, after in pairwise(ordered))
    # Left out is the dear corner: whoever has a run has all that are smaller and shorter.
    for proxy in grid.proxies:
        assert all(
            Proxy(size, tokens) in grid.proxies
            for size in sizes
            for tokens in lengths
            if size <= proxy.size and tokens <= proxy.tokens
        )


@settings(max_examples=30)
@given(st.floats(1, 1e5), st.floats(1, 100))
def test_more_budget_never_gives_less(budget, more):
    def runs(amount):
        found = choose(SIZES, price(), amount, 2, least=LEAST, enough=4 * LEAST, paired=paired)
        return (len(found.proxies), found.cost) if found else (0, 0.0)

    assert runs(budget * more)[0] >= runs(budget)[0]


def test_large_budgets_move_up_the_ladder():
    small, large = (
        choose(SIZES, price(1e10), budget, 2, least=LEAST, enough=4 * LEAST, paired=paired) for budget in (1e3, 1e5)
    )
    assert len(large.proxies) == 19
    assert min(proxy.size for proxy in large.proxies) > min(proxy.size for proxy in small.proxies)


def test_the_longest_run_has_a_limit():
    found = choose(SIZES, price(), 1e6, 2, least=LEAST, enough=4 * LEAST, paired=paired, most=2e7)
    assert max(proxy.tokens for proxy in found.proxies) <= 2e7


def test_forms_grow():
    assert [sum(i + j <= form.most for i in range(form.sizes) for j in range(form.lengths)) for form in FORMS] == [
        *(19, 13, 8, 6)
    ]
    assert len(smallest(SIZES, price(), 1, LEAST).proxies) == 6
    assert smallest(SIZES[:3], price(), 1, LEAST) is None  # 0.9 is not half as large again as 0.7


def test_sizes_are_spaced():
    assert spaced([1, 1.2, 1.6, 2.3, 2.5], 0) == [0, 2, 4]


def test_places_work_at_the_same_time():
    assert together([3, 3, 2, 2, 2], 2) == 7  # the dearest first: 3 + 2 + 2 beside 3 + 2
    assert together([1.0], 4) == 1.0
    assert together([1.0, 1.0], 2, busy=[5.0]) == 5.0
    assert together([1.0, 1.0, 4.0], 2, busy=[5.0]) == 6.0
    assert together([], 2, busy=[1.0, 2.0]) == 2.0


@settings(max_examples=40)
@given(st.floats(1, 1e5), st.integers(1, 4))
def test_a_sweep_fits_or_is_the_smallest(budget, places):
    terms = {"least": LEAST, "enough": 4 * LEAST, "most": 8 * LEAST}
    found = choose_sweep([0, 2, 4, 6, 7], price(), budget, places, **terms)
    least = choose_sweep([0, 2, 4, 6, 7], price(), 0.0, places, **terms)
    assert (least.sizes, least.rates, least.tokens) == ((0, 2), 3, LEAST)
    assert found.cost <= budget or found == least
    assert LEAST <= found.tokens <= 8 * LEAST
    assert found.rates % 2 == 1
    assert set(found.sizes) <= {0, 2, 4, 6, 7}
