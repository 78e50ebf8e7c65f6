"""The search for a rate: where it asks, what it chooses, and the process behind it against plain linear algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thalweg.errors import RecipeError
from thalweg.methods.schedules import rate_search
from thalweg.methods.schedules.rate_search import RateSearch, posterior


def searched(search, value, trials=10):
    for _ in range(trials):
        rate = search.ask()
        search.tell(rate, value(rate))
    return [rate for rate, _ in search.tried]


def bowl(rate):
    """Lowest at 0.02."""
    return (math.log10(rate) - math.log10(0.02)) ** 2


def test_exploration_covers_the_range_evenly():
    rates = sorted(searched(RateSearch(1e-3, 1e-1), bowl))
    gaps = np.diff(np.log10(rates))
    assert rates[0] == 1e-3
    assert rates[-1] == 1e-1
    assert gaps.max() < 0.35  # two decades in nine even gaps would be 0.22 each
    assert gaps.min() > 0.1


def test_a_small_kappa_closes_in_on_the_lowest():
    search = RateSearch(1e-3, 1e-1, kappa=2.0)
    rates = searched(search, bowl)
    assert search.best() == pytest.approx(0.02, rel=0.03)
    assert sum(abs(math.log10(rate / 0.02)) < 0.1 for rate in rates) >= 4


@pytest.mark.parametrize("kappa", [0.0, 2.0, 1e6])
@pytest.mark.parametrize("value", [bowl, lambda rate: 1.0])
def test_no_rate_is_tried_twice(kappa, value):
    rates = searched(RateSearch(1e-3, 1e-1, kappa=kappa), value, 20)
    assert len(set(rates)) == 20
    assert np.diff(np.log10(sorted(rates))).min() > 1e-3


def test_the_first_rate_is_the_one_that_is_given():
    assert RateSearch(1e-3, 1e-1, first=0.04).ask() == 0.04
    assert RateSearch(1e-3, 1e-1, first=0.9).ask() == 1e-1
    assert RateSearch(1e-3, 1e-1).ask() == pytest.approx(1e-2)


def test_a_diverged_rate_is_never_chosen():
    search = RateSearch(1e-3, 1e-1, kappa=2.0)
    rates = searched(search, lambda rate: bowl(rate) if rate < 0.015 else math.nan)
    assert any(rate > 0.015 for rate in rates)
    assert search.best() == max(rate for rate in rates if rate < 0.015)
    assert RateSearch(1e-3, 1e-1, tried=[(0.01, math.inf), (0.02, math.nan)]).best() is None


def test_a_range_of_one_rate():
    assert searched(RateSearch(0.01, 0.01), bowl, 3) == [0.01] * 3


def test_it_goes_on_from_what_was_tried():
    one = RateSearch(1e-3, 1e-1, kappa=2.0)
    searched(one, bowl, 4)
    other = RateSearch(1e-3, 1e-1, kappa=2.0, tried=one.tried)
    assert searched(one, bowl, 3) == searched(other, bowl, 3)


def test_posterior_is_that_of_plain_linear_algebra(monkeypatch):
    length, noise, strength = 0.3, 1e-3, 0.7
    monkeypatch.setattr(rate_search, "_most_likely", lambda *_: (length, noise, strength))
    places, where = np.array([0.0, 0.35, 0.4, 1.0]), np.linspace(0.0, 1.0, 7)
    values = np.array([1.0, 0.2, 0.3, 2.0])

    def kernel(one, other):
        r = math.sqrt(5.0) * np.abs(np.subtract.outer(one, other)) / length
        return (1.0 + r + r**2 / 3.0) * np.exp(-r)

    inverse = np.linalg.inv(kernel(places, places) + noise * np.eye(4))
    mean = values.mean() + kernel(where, places) @ inverse @ (values - values.mean())
    spread = np.diag(kernel(where, where) - kernel(where, places) @ inverse @ kernel(places, where))
    found_mean, found_deviation = posterior(places, values, where)
    assert found_mean == pytest.approx(mean, abs=1e-10)
    assert found_deviation == pytest.approx(values.std() * np.sqrt(strength * spread), abs=1e-10)


def test_the_process_goes_through_what_it_was_told():
    places = np.linspace(0.0, 1.0, 6)
    values = np.sin(4.0 * places)
    mean, deviation = posterior(places, values, places)
    assert mean == pytest.approx(values, abs=1e-3)
    assert deviation.max() < 0.01
    between, wide = posterior(places, values, np.array([0.5, 3.0]))
    assert between[0] == pytest.approx(math.sin(2.0), abs=0.02)
    assert wide[1] > 10 * wide[0]


@pytest.mark.parametrize(
    ("low", "high", "kappa"), [(0.0, 1.0, 1.0), (2.0, 1.0, 1.0), (0.1, math.inf, 1.0), (0.1, 1.0, -1.0)]
)
def test_mistakes(low, high, kappa):
    with pytest.raises(RecipeError):
        RateSearch(low, high, kappa)
