"""Time to target, workload times, profiles and scores, against the numbers of the method sheet."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.errors import UserError
from thalweg.laws.algoperf import profile, ratios, scores, time_to_target, workload_time

INF = math.inf
TIMES = {"A": (10, 30, 20, INF), "B": (20, 15, 25, 100), "C": (15, 70, INF, 50)}


@st.composite
def pools(draw) -> dict[str, list[float]]:
    """Times of up to four algorithms on up to five workloads, some infinite."""
    workloads = draw(st.integers(1, 5))
    time = st.one_of(st.floats(0.01, 1e4), st.just(INF))
    rows = draw(st.lists(st.lists(time, min_size=workloads, max_size=workloads), min_size=1, max_size=4))
    return {f"arm {index}": row for index, row in enumerate(rows)}


def test_ratios_of_the_sheet():
    assert ratios(TIMES, r_max=4.0) == {
        "A": pytest.approx([1, 2, 1, INF]),
        "B": pytest.approx([2, 1, 1.25, 2]),
        "C": pytest.approx([1.5, INF, INF, 1]),
    }
    assert ratios(TIMES)["C"] == pytest.approx([1.5, 70 / 15, INF, 1])


def test_scores_of_the_sheet():
    expected = {"A": 0.666667, "B": 0.8125, "C": 0.458333}
    assert scores(TIMES) == pytest.approx(expected, abs=1e-6)


def test_trapezoid_over_the_profile_is_the_released_integral():
    taus = np.linspace(1, 4, 100)
    integrals = {name: np.trapezoid(shares, taus) / 3 for name, shares in profile(TIMES, taus).items()}
    assert integrals == pytest.approx({"A": 0.66793, "B": 0.81439, "C": 0.45833}, abs=1e-5)


def test_a_fine_integral_of_the_profile_is_the_closed_form():
    middles = 1 + 3 * (np.arange(30_000) + 0.5) / 30_000
    integrals = {name: float(np.mean(shares)) for name, shares in profile(TIMES, middles).items()}
    assert integrals == pytest.approx(scores(TIMES), abs=1e-4)


def test_profile_steps_at_the_ratios():
    assert profile(TIMES, [1, 1.25, 1.999, 2, 4, 4.7])["B"] == [0.25, 0.5, 0.5, 1.0, 1.0, 1.0]
    assert profile(TIMES, [1, 4, 4.7, 1e9])["C"] == [0.25, 0.5, 0.75, 0.75]


def test_fastest_everywhere_is_one_and_never_there_is_zero():
    assert scores({"fast": [1, 2, 3], "slow": [2, 4, INF], "lost": [INF, INF, INF]}) == {
        "fast": 1.0,
        "slow": pytest.approx((2 + 2 + 0) / 9),
        "lost": 0.0,
    }


def test_a_workload_that_nobody_solves_counts_for_nobody():
    assert scores({"one": [1, INF], "two": [1, INF]}) == {"one": 0.5, "two": 0.5}


def test_another_competitor_changes_the_scores():
    assert scores({**TIMES, "D": (5, 15, 20, 50)})["A"] < scores(TIMES)["A"]


# Powers of two, which round nothing: a ratio that rounding moves across a bound of the profile is another score.
@given(pools(), st.integers(-10, 10).map(lambda power: 2.0**power))
def test_the_unit_of_a_workload_does_not_matter(times, factor):
    changed = {name: [row[0] * factor, *row[1:]] for name, row in times.items()}
    assert scores(changed) == pytest.approx(scores(times), abs=1e-9)


@given(pools())
def test_scores_and_profiles_stay_in_bounds(times):
    taus = [1.0, 1.5, 2.0, 4.0, 100.0]
    for name, score in scores(times).items():
        shares = profile(times, taus)[name]
        assert 0 <= score <= 1
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] <= 1
        # The profile never falls, so its mean over [1, 4] lies between its ends.
        assert shares[0] - 1e-12 <= score <= shares[3] + 1e-12


def test_workload_time_is_the_median_of_the_fastest():
    assert workload_time([[9, 12], [30, 8], [INF, INF]]) == 9
    assert workload_time([[9, 12], [INF, INF], [INF, INF]]) == INF
    assert workload_time([[9], [8]]) == 8.5
    assert workload_time([[9], [INF]]) == INF
    # The best trial of all studies, 1, would be the winner's curse.
    assert workload_time([[1, 50], [40, 60], [45, 70]]) == 40


def test_time_to_target_is_the_first_evaluation_that_meets_it():
    assert time_to_target([10, 20, 30, 40], [3.0, 2.0, 2.5, 1.5], 2.0) == 20
    assert time_to_target([10, 20], [3.0, 2.5], 2.0) == INF
    assert time_to_target([10, 20], [math.nan, 1.0], 2.0) == 20
    assert time_to_target([], [], 2.0) == INF


def test_a_metric_to_be_maximised_turns_the_comparison():
    assert time_to_target([10, 20, 30], [0.2, 0.5, 0.7], 0.5, maximise=True) == 20
    assert time_to_target([10, 20, 30], [0.2, 0.5, 0.7], 0.5) == 10
    assert time_to_target([10, 20], [0.2, math.nan], 0.5, maximise=True) == INF


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: scores({}),
        lambda: scores({"A": [], "B": []}),
        lambda: scores({"A": [1, 2], "B": [1]}),
        lambda: scores({"A": [0.0]}),
        lambda: scores({"A": [math.nan]}),
        lambda: scores(TIMES, r_max=1.0),
        lambda: scores(TIMES, r_max=INF),
        lambda: workload_time([]),
        lambda: workload_time([[1.0], []]),
        lambda: workload_time([[math.nan]]),
        lambda: time_to_target([1, 2], [1.0], 0.5),
        lambda: time_to_target([2, 1], [1.0, 1.0], 0.5),
    ],
)
def test_nonsense_is_refused(mistake):
    with pytest.raises(UserError):
        mistake()
