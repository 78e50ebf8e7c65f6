"""Paired comparison: against scipy, against brute force, and against what its error rates promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from thalweg.arena.statistics import Interval, Paired, holm, mean_interval, paired, sign_flip, verdict
from thalweg.errors import ArenaError

OURS = [1.95, 1.97, 1.93, 1.99, 1.96, 1.94]
THEIRS = [1.98, 1.975, 1.97, 1.985, 2.00, 1.96]
SIMULATIONS = 4000


def difference(mean: float, sd: float, n: int) -> Paired:
    """The comparison that n differences with this mean and sd give."""
    shape = np.linspace(-1, 1, n)
    return paired(mean + sd * shape / shape.std(ddof=1), np.zeros(n))


def test_interval_is_scipys():
    interval = mean_interval(OURS, confidence=0.9)
    low, high = stats.t.interval(0.9, 5, loc=np.mean(OURS), scale=stats.sem(OURS))
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)
    assert interval.sd == pytest.approx(np.std(OURS, ddof=1), rel=1e-12)
    assert interval.n == 6


def test_interval_by_hand():
    # t(0.975, 2) = 4.302653; 1, 2, 3 have sd 1 and standard error 1 / sqrt(3).
    assert mean_interval([1, 2, 3]).high == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)


def test_paired_is_scipys_t_test():
    result = paired(OURS, THEIRS)
    reference = stats.ttest_rel(OURS, THEIRS)
    assert result.p_t == pytest.approx(reference.pvalue, rel=1e-10)
    expected = reference.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), rel=1e-10)
    assert result.mean == pytest.approx(-0.13 / 6, rel=1e-10)


@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_sign_flips_are_scipys_permutation_test(n):
    differences = np.random.default_rng(n).normal(0.5, 1, n)
    reference = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip(differences) == pytest.approx(reference.pvalue, rel=1e-12)


def test_sign_flips_by_hand():
    # Of the patterns of 1, 2, 3 only all-plus and all-minus reach 6; of 1, 1, 2 the sums are 4, 2, 2, 0 and opposites.
    assert sign_flip([1, 2, 3]) == 0.25
    assert sign_flip([1, 1, 2]) == 0.25
    assert sign_flip([1, 1, -2]) == 1.0
    assert sign_flip([-1, 2, 2]) == 0.5
    assert sign_flip([0.7]) == 1.0


def test_sign_flips_count_ties_despite_rounding():
    # In exact numbers the observed sum of 0.1, 0.2, -0.3 is 0, which every pattern reaches.
    assert sign_flip([0.1, 0.2, -0.3]) == 1.0
    # At least four of five signs alike reach 0.6: 2 + 10 of 32 patterns, added up in many orders.
    assert sign_flip([0.2, 0.2, 0.2, 0.2, -0.2]) == 12 / 32


def test_many_sign_flips_are_drawn_and_close_to_exact():
    differences = np.linspace(-1.0, 1.6, 17)
    patterns = 1 - 2 * ((np.arange(2**17)[:, None] >> np.arange(17)) & 1)
    exact = (np.abs(patterns @ differences) >= abs(differences.sum()) * (1 - 1e-12)).mean()
    assert 0.05 < exact < 0.5
    drawn = sign_flip(differences)
    assert drawn == sign_flip(differences)
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 10_000))
    assert sign_flip(np.full(40, 0.1)) == pytest.approx(1 / 10_001)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 become 0.02, 0.03, 0.06, and 0.04 which may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert (holm([0.03]), holm([])) == ([0.03], [])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, level):
    rejected = set()
    remaining = list(range(len(p_values)))
    while remaining:
        smallest = min(remaining, key=lambda index: p_values[index])
        if p_values[smallest] * len(remaining) > level:
            break
        rejected.add(smallest)
        remaining.remove(smallest)
    assert {index for index, p in enumerate(holm(p_values)) if p <= level} == rejected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7).flatmap(lambda p: st.tuples(st.just(p), st.permutations(p))))
def test_holm_does_not_depend_on_order(both):
    p_values, shuffled = both
    assert sorted(holm(shuffled)) == sorted(holm(p_values))


def simulate(n: int, effect: float, arms: int = 1) -> list[list[Paired]]:
    """Comparisons of arms with one baseline: a part of the noise is shared by a seed, as in training."""
    rng = np.random.default_rng(1000 + n)
    shared = rng.normal(2.0, 0.02, (SIMULATIONS, 1, n))
    values = shared + rng.normal(0, 0.01, (SIMULATIONS, arms + 1, n))
    values[:, 1:] += effect
    return [[paired(arm, run[0]) for arm in run[1:]] for run in values]


@pytest.mark.parametrize("n", [3, 5])
def test_identical_arms_are_told_apart_in_five_percent(n):
    words = [verdict(result, result.p_t, 0.0)[0] for (result,) in simulate(n, effect=0.0)]
    false = sum(word in ("better", "worse") for word in words) / SIMULATIONS
    assert false == pytest.approx(0.05, abs=0.015)
    assert set(words) == {"better", "worse", "undecided"}
    assert words.count("better") == pytest.approx(words.count("worse"), abs=4 * math.sqrt(0.05 * SIMULATIONS))


@pytest.mark.parametrize("n", [3, 5])
def test_interval_covers_the_effect_in_95_percent(n):
    results = [result for (result,) in simulate(n, effect=-0.03)]
    covered = sum(result.low <= -0.03 <= result.high for result in results) / SIMULATIONS
    assert covered == pytest.approx(0.95, abs=0.015)
    # Two standard deviations of the difference, found in most comparisons of five seeds and never turned round.
    words = [verdict(result, result.p_t, 0.0)[0] for result in results]
    assert "worse" not in words
    assert words.count("better") / SIMULATIONS > {3: 0.3, 5: 0.85}[n]


def test_three_arms_with_holm_are_told_apart_falsely_in_five_percent_at_most():
    false = plain = 0
    for results in simulate(4, effect=0.0, arms=3):
        adjusted = holm([result.p_t for result in results])
        words = [verdict(result, p, 0.0)[0] for result, p in zip(results, adjusted, strict=True)]
        false += any(word in ("better", "worse") for word in words)
        plain += any(result.p_t < 0.05 for result in results)
    assert 0.02 < false / SIMULATIONS <= 0.065
    # Without the adjustment the promise would be broken, so the simulation can tell.
    assert plain / SIMULATIONS > 0.09


def test_a_tie_is_rarely_claimed_of_a_difference_beyond_the_margin():
    words = [verdict(result, result.p_t, 0.03)[0] for (result,) in simulate(5, effect=0.03)]
    assert words.count("tied") / SIMULATIONS <= 0.04
    words = [verdict(result, result.p_t, 0.03)[0] for (result,) in simulate(5, effect=0.0)]
    assert words.count("tied") / SIMULATIONS > 0.85


def test_words():
    assert verdict(difference(-0.02, 0.005, 5), None, 0.004)[0] == "better"
    assert verdict(difference(0.02, 0.005, 5), None, 0.004)[0] == "worse"
    assert verdict(difference(0.02, 0.02, 5), None, 0.004)[0] == "undecided"
    # Certain and negligible is a tie, with a margin only.
    assert verdict(difference(0.002, 0.0005, 5), None, 0.004)[0] == "tied"
    assert verdict(difference(0.002, 0.0005, 5), None, 0.0)[0] == "worse"
    # One arm of many needs more.
    narrow = difference(-0.02, 0.014, 5)
    assert narrow.p_t == pytest.approx(0.033, abs=0.001)
    assert verdict(narrow, narrow.p_t, 0.0)[0] == "better"
    assert verdict(narrow, 3 * narrow.p_t, 0.0)[0] == "undecided"


def test_the_ends_of_the_margin():
    # A constant difference has an interval without width.
    assert verdict(paired([1.25, 2.25], [1.0, 2.0]), 0.0, 0.25)[0] == "tied"
    assert verdict(paired([1.25, 2.25], [1.0, 2.0]), 0.0, 0.2499)[0] == "worse"
    assert verdict(paired([0.75, 1.75], [1.0, 2.0]), 0.0, 0.25)[0] == "tied"


def test_differences_without_spread():
    same = paired(OURS, OURS)
    assert (same.mean, same.sd, same.p_t, same.p_permutation) == (0.0, 0.0, 1.0, 1.0)
    assert verdict(same, 1.0, 0.0) == ("tied", "exactly the baseline's value in all 6 seeds", None)
    # 0.3 three times has a mean that is not 0.3 when added up and divided.
    constant = paired([0.3, 0.3, 0.3], [0.0, 0.0, 0.0])
    assert (constant.mean, constant.sd, constant.p_t, constant.low) == (0.3, 0.0, 0.0, 0.3)
    assert verdict(constant, 0.0, 0.0)[0] == "worse"


def test_one_seed_has_no_interval():
    assert mean_interval([1.5]) == Interval(1.5, None, None, None, 1)
    single = paired([1.5], [2.0])
    assert single == Paired(-0.5, None, None, None, None, None, 1)
    word, sentence, seeds = verdict(single, None, 10.0)
    assert (word, seeds) == ("undecided", None)
    assert sentence == "lower by 0.500 in the one seed run: a second is needed to know the spread"
    assert verdict(paired([2.0], [2.0]), None, 0.0)[:2] == ("tied", "exactly the baseline's value in the one seed")


def test_more_seeds_by_hand():
    # mean = sd: zero is excluded once t(0.975, N - 1) < sqrt(N). N = 6: 2.571 > 2.449; N = 7: 2.447 < 2.646.
    word, sentence, seeds = verdict(difference(-0.01, 0.01, 3), None, 0.0)
    assert (word, seeds) == ("undecided", 4)
    assert sentence.endswith("; 4 more seeds should decide")
    # Mean 0 fits a margin of one sd at the same N, and without a margin never decides.
    assert verdict(difference(0.0, 0.01, 3), None, 0.01)[2] == 4
    assert verdict(difference(0.0, 0.01, 3), None, 0.0)[2] is None
    assert verdict(difference(0.01, 1.0, 3), None, 0.0)[2] is None
    # Holm doubled the p-value: t(0.9875, N - 1) < sqrt(N). N = 8: 2.841 > 2.828; N = 9: 2.752 < 3.
    result = difference(-0.01, 0.01, 3)
    assert verdict(result, 2 * result.p_t, 0.0)[2] == 6


@pytest.mark.parametrize(("ratio", "n"), [(0.5, 3), (1.0, 4), (0.3, 5), (0.1, 6)])
def test_more_seeds_is_the_first_number_that_decides(ratio, n):
    seeds = verdict(difference(ratio, 1.0, n), None, 0.05)[2]
    assert seeds is not None
    assert verdict(difference(ratio, 1.0, n + seeds), None, 0.05)[0] == "worse"
    if seeds > 1:
        assert verdict(difference(ratio, 1.0, n + seeds - 1), None, 0.05)[0] == "undecided"


def test_sentences():
    result = Paired(-0.0213, -0.0276, -0.0150, 0.01, 0.004, 0.01, 10)
    assert verdict(result, 0.004, 0.0)[1] == "lower by 0.0213 (0.0150 to 0.0276), p = 0.004"
    assert verdict(result, 0.008, 0.0)[1] == "lower by 0.0213 (0.0150 to 0.0276), p = 0.008 (Holm)"
    few = Paired(0.0213, 0.0150, 0.0276, 0.0025, 0.0004, 0.25, 3)
    assert verdict(few, 0.0004, 0.0)[1] == (
        "higher by 0.0213 (0.0150 to 0.0276), p < 0.001 by Student's t; with 3 seeds sign flips cannot go below 0.25"
    )
    unsure = Paired(-0.001, -0.0073, 0.0053, 0.01, 0.72, 0.7, 12)
    sentence = "lower by 0.0010 (0.0073 lower to 0.0053 higher)"
    assert verdict(unsure, 0.72, 0.0)[1].startswith(f"{sentence}, p = 0.72; ")
    assert verdict(unsure, 0.72, 0.01)[1] == f"{sentence}: within the margin of 0.01"


@pytest.mark.parametrize(("n", "said"), [(2, True), (5, True), (6, False)])
def test_too_few_seeds_for_sign_flips_are_mentioned(n, said):
    assert ("sign flips cannot" in verdict(difference(1.0, 0.01, n), None, 0.0)[1]) is said


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=2, max_size=8),
    st.integers(-1000, 1000),
    st.sampled_from([0.125, 0.5, 2.0, 8.0]),
)
def test_shift_scale_and_symmetry(pairs, shift, scale):
    """Powers of two and whole numbers: equal up to the last bit or nearly so."""
    ours, theirs = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    base = paired(ours, theirs)
    moved = paired(ours + shift, theirs + shift)
    assert moved == base
    scaled = paired(ours * scale, theirs * scale)
    assert (scaled.mean, scaled.low, scaled.high) == pytest.approx(
        (base.mean * scale, base.low * scale, base.high * scale), rel=1e-12, abs=1e-12
    )
    assert (scaled.p_t, scaled.p_permutation) == pytest.approx((base.p_t, base.p_permutation), rel=1e-9)
    swapped = paired(theirs, ours)
    assert (swapped.mean, swapped.low, swapped.high) == pytest.approx((-base.mean, -base.high, -base.low), abs=1e-12)
    assert (swapped.p_t, swapped.p_permutation) == (base.p_t, base.p_permutation)
    opposite = {"better": "worse", "worse": "better"}
    word, _, seeds = verdict(base, None, 3.0)
    assert verdict(swapped, None, 3.0)[::2] == (opposite.get(word, word), seeds)
    assert verdict(scaled, None, 3.0 * scale)[::2] == (word, seeds)
    shifted = mean_interval(ours + shift)
    assert (shifted.mean, shifted.sd) == pytest.approx(
        (mean_interval(ours).mean + shift, mean_interval(ours).sd), rel=1e-12, abs=1e-12
    )


@given(
    st.lists(st.integers(-9, 9), min_size=2, max_size=8).flatmap(lambda d: st.tuples(st.just(d), st.permutations(d)))
)
def test_order_of_seeds_does_not_matter(both):
    differences, shuffled = both
    assert sign_flip(shuffled) == sign_flip(differences)
    one, other = (paired(values, np.zeros(len(values))) for values in both)
    assert (other.mean, other.sd, other.p_t) == pytest.approx((one.mean, one.sd, one.p_t), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: paired([1.0, 2.0], [1.0]),
        lambda: paired([1.0, math.nan], [1.0, 2.0]),
        lambda: paired([1.0, 2.0], [math.inf, 2.0]),
        lambda: mean_interval([]),
        lambda: mean_interval([1.0, 2.0], confidence=95),
        lambda: sign_flip([]),
        lambda: holm([0.5, 1.2]),
        lambda: holm([math.nan]),
        lambda: verdict(paired([1.0, 2.0], [1.0, 3.0]), None, -0.1),
        lambda: verdict(paired([1.0, 2.0], [1.0, 3.0]), None, math.nan),
    ],
)
def test_what_cannot_be_compared_is_refused(mistake):
    with pytest.raises(ArenaError):
        mistake()
