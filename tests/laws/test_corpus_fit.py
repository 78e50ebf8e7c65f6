"""The law of few runs: its constants where they are told, honest intervals where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from thalweg.errors import UserError
from thalweg.laws.chinchilla import ChinchillaLaw
from thalweg.laws.corpus_fit import fit

KNOWN = ChinchillaLaw(28.88, 810.3, 1.294, 0.419, 0.560)
# Another corpus: other scales, other exponents.
OTHER = ChinchillaLaw(12.0, 300.0, 0.9, 0.33, 0.47)
SIZES = (0.45e6, 0.9e6, 1.8e6, 3.6e6, 7.2e6)


def grid(sizes, lengths, most, base=2e5):
    return np.array([(SIZES[i], base * 2**j) for i in range(sizes) for j in range(lengths) if i + j <= most])


def points(law, places, noise=0.0, seed=0):
    loss = law.predict(*places.T) * np.exp(noise * np.random.default_rng(seed).normal(size=len(places)))
    return np.column_stack([places, loss])


def test_all_constants_where_the_runs_tell_them():
    found = fit(points(OTHER, grid(5, 5, 8, 1e6), 1e-4), KNOWN)
    assert found.constants == 5
    assert (found.law.alpha, found.law.beta, found.law.E) == pytest.approx((0.33, 0.47, 0.9), rel=0.05)
    for name, place in (("E", 2), ("alpha", 3), ("beta", 4)):
        values = found.law.refits[:, place]
        low, high = np.quantile(np.exp(values) if name == "E" else values, [0.005, 0.995])
        assert low <= getattr(OTHER, name) <= high


def test_few_runs_borrow_the_exponents_and_say_so():
    found = fit(points(KNOWN, grid(3, 3, 2), 0.003, 1), KNOWN)
    assert found.constants == 3
    assert (found.law.alpha, found.law.beta) == (KNOWN.alpha, KNOWN.beta)
    assert "6 runs over 3 sizes and 3 numbers of tokens are too few for its exponents" in found.told
    exact = fit(points(KNOWN, grid(3, 3, 2)), KNOWN).law
    assert pytest.approx((28.88, 810.3, 1.294), rel=1e-3) == (exact.A, exact.B, exact.E)


def test_runs_that_tell_nothing_of_size_keep_the_shape():
    """Losses that do not fall with size: no law of this form has such points, and A / B stays as it was."""
    places = grid(3, 3, 3)
    found = fit(
        np.column_stack([places, 1.5 - 0.02 * np.log2(places[:, 1] / 2e5) + 0.01 * (places[:, 0] > 1e6)]), KNOWN
    )
    assert found.constants == 2
    assert pytest.approx(KNOWN.A / KNOWN.B) == found.law.A / found.law.B
    assert "A / B as known before" in found.told
    assert found.law.predict(0.9e6, 4e5) == pytest.approx(1.48, abs=0.03)


@pytest.mark.parametrize("truth", [KNOWN, OTHER], ids=["known", "other"])
@pytest.mark.parametrize(("form", "noise"), [((3, 3, 2), 0.006), ((3, 3, 3), 0.004)])
def test_intervals_hold_new_runs(truth, form, noise):
    """95% intervals on small grids, at twice and at four times the size and tokens; none is vacuous."""
    inside, widths, draws = 0, [], 25
    for seed in range(draws):
        law = fit(points(truth, grid(*form), noise, seed), KNOWN, refits=100, seed=seed).law
        for n, d in ((1.8e6, 1.6e6), (7.2e6, 3.2e6)):
            low, high = law.interval(n, d)
            new = truth.predict(n, d) * np.exp(noise * np.random.default_rng([seed, 1]).normal())
            inside += low <= new <= high
            widths.append(high / low - 1)
    # Of 50 at 95%, 43 or fewer come by chance once in 300 times.
    assert inside >= 43
    assert np.median(widths) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("truth", [KNOWN, OTHER], ids=["known", "other"])
def test_coverage_over_two_hundred_grids(truth):
    inside = 0
    for seed in range(200):
        law = fit(points(truth, grid(3, 3, 3), 0.004, seed), KNOWN, seed=seed).law
        low, high = law.interval(3.6e6, 1.6e6)
        inside += low <= truth.predict(3.6e6, 1.6e6) * np.exp(0.004 * np.random.default_rng([seed, 1]).normal()) <= high
    assert inside >= 180


@pytest.mark.parametrize("bad", [[], [(1e6, 1e6, 2.0)] * 2, [(1e6, 1e6)] * 5, [(1e6, 1e6, -2.0)] * 5])
def test_points_that_make_no_law(bad):
    with pytest.raises(UserError, match="three finished runs"):
        fit(bad, KNOWN)


def test_refits_are_reproducible():
    first, again = (fit(points(OTHER, grid(3, 3, 3), 0.004), KNOWN, refits=20, seed=3).law for _ in range(2))
    assert first.interval(1e7, 1e7) == again.interval(1e7, 1e7)
