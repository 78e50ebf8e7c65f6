"""Is one arm better than another? Paired comparison over seeds: intervals, tests and a verdict in words.

Two arms that are run with the same seed see the same initial weights and the same data in the same order, so most of
the luck is shared and goes away in their difference d_s = value_s - baseline_s. What is left is judged by Student's t:

    mean(d) +- t(0.975, n - 1) sd(d) / sqrt(n)        sd with n - 1

and the p-value that belongs to it. A second p-value assumes nothing about the distribution: were the two arms alike,
each difference could as well have had the other sign, so the p-value is the share of the 2^n sign patterns whose mean
is as far from zero as the one observed (Fisher's randomization test). With n seeds it cannot go below 2 / 2^n, which
with fewer than six is above 0.05; verdicts therefore go by Student's t, and say so.

Several arms against one baseline get Holm's adjustment (A Simple Sequentially Rejective Multiple Test Procedure, 1979):
the chance of calling *any* arm better or worse that is neither stays at 5%.

A verdict has four words. "tied" needs evidence like the others: the whole interval within the margin that somebody
called negligible before looking. No evidence either way is "undecided", with the number of seeds that should help.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from thalweg.errors import ArenaError

_LEVEL = 0.05
_MOST_SEEDS = 1000
_EXACT_UP_TO = 16
_DRAWS = 10_000
# Sums of the same numbers in another order differ by rounding: this much of the sum of sizes counts as a tie.
_TIE = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean with its interval and standard deviation, in the unit of the values.

    With one value there is no spread to judge by: low, high and sd are None.
    """

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """Mean difference of an arm from its baseline over n seeds; negative is lower than the baseline.

    Args:
        mean: of the differences.
        low: lower end of the interval of the mean.
        high: upper end.
        sd: standard deviation of the differences.
        p_t: two-sided p-value by Student's t.
        p_permutation: two-sided p-value by sign flips.
        n: seeds. With one, all fields but the mean are None.
    """

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    p_t: float | None
    p_permutation: float | None
    n: int


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean of the values with its Student t interval.

    Args:
        values: [n], one a seed.
        confidence: between 0 and 1.

    Raises:
        ArenaError: no value, or one that is not finite, or a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ArenaError(f"A confidence lies between 0 and 1, not at {confidence}.")
    checked = _finite(values, "values")
    # Relative to the first, equal values have a mean and a spread without rounding.
    offsets = checked - checked[0]
    mean, n = float(checked[0] + offsets.mean()), len(checked)
    if n == 1:
        return Interval(mean, None, None, None, 1)
    sd = float(offsets.std(ddof=1))
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n)


def paired(
    values: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Paired:
    """Compare an arm with its baseline, seed by seed.

    Args:
        values: [n], of the arm.
        baseline: [n], of the baseline, in the same order of seeds.
        confidence: of the interval.

    Raises:
        ArenaError: the two differ in length, or are empty or not finite.
    """
    ours, theirs = _finite(values, "values"), _finite(baseline, "values of the baseline")
    if len(ours) != len(theirs):
        raise ArenaError(
            f"{len(ours)} values cannot be paired with {len(theirs)} of the baseline.",
            fix="Give both for the same seeds, in the same order.",
        )
    differences = ours - theirs
    interval = mean_interval(differences, confidence)
    if interval.sd is None:
        return Paired(interval.mean, None, None, None, None, None, 1)
    if interval.sd == 0:
        p_t = 1.0 if interval.mean == 0 else 0.0
    else:
        t = abs(interval.mean) / interval.sd * math.sqrt(interval.n)
        p_t = min(1.0, 2 * float(stdtr(interval.n - 1, -t)))
    return Paired(interval.mean, interval.low, interval.high, interval.sd, p_t, sign_flip(differences), interval.n)


def sign_flip(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided p-value of the mean difference, were every difference's sign a coin's toss.

    Exact up to 16 differences; above that by 10,000 draws from a generator with a fixed seed, the observed pattern
    counted among them: (hits + 1) / (draws + 1).

    Args:
        differences: [n].

    Raises:
        ArenaError: there are none, or one is not finite.
    """
    checked = _finite(differences, "differences")
    threshold = abs(checked.sum()) - _TIE * np.abs(checked).sum()
    if len(checked) > _EXACT_UP_TO:
        signs = np.random.default_rng(0).integers(0, 2, (_DRAWS, len(checked)), dtype=np.int8) * 2 - 1
        hits = int((np.abs(signs @ checked) >= threshold).sum())
        return (hits + 1) / (_DRAWS + 1)
    # A pattern and its opposite are equally far from zero, so the first sign can stay.
    sums = checked[:1]
    for difference in checked[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    return float((np.abs(sums) >= threshold).mean())


def holm(p_values: Sequence[float] | np.ndarray) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject where one is below the level for the whole family.

    The i-th smallest (from 0) of m is multiplied by m - i, and none may be smaller than one before it, or above 1.

    Raises:
        ArenaError: a p-value outside [0, 1].
    """
    values = np.asarray(p_values, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ArenaError(f"A p-value lies between 0 and 1: {list(p_values)}.")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    raised = values[order] * np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(value) for value in adjusted]


def verdict(difference: Paired, p_adjusted: float | None, margin: float) -> tuple[str, str, int | None]:
    """What to say of an arm whose values are better when lower.

    Args:
        difference: of the arm from the baseline, with its 95% interval.
        p_adjusted: p_t after Holm; None where there is nothing to adjust for (p_t is used then).
        margin: the difference that does not matter, in the unit of the values; 0 if every difference does.

    Returns:
        The word, a sentence, and for "undecided" how many further seeds should decide. The words:

        - "tied": the interval lies within the margin on both sides (of a margin above 0), or all differences are
          exactly 0. A difference that is certain and negligible is a tie.
        - "better", "worse": the adjusted p-value is below 0.05 and the interval on one side of zero.
        - "undecided": otherwise. The seeds are those after which the interval expected from the same mean and sd
          excludes 0 (at the adjusted level) or fits the margin; None with one seed, or if more than 1000.

    Raises:
        ArenaError: the margin is negative or not a number.
    """
    if not margin >= 0:
        raise ArenaError(f"A margin cannot be below zero or undefined: {margin}.")
    if difference.mean == 0 and not difference.sd:
        count = "the one seed" if difference.n == 1 else f"all {difference.n} seeds"
        return "tied", f"exactly the baseline's value in {count}", None
    if difference.low is None or difference.high is None or difference.p_t is None:
        sentence = f"{_direction(difference)} in the one seed run: a second is needed to know the spread"
        return "undecided", sentence, None
    if margin > 0 and -margin <= difference.low and difference.high <= margin:
        return "tied", f"{_direction(difference)} ({_range(difference)}): within the margin of {margin:.2g}", None
    p = difference.p_t if p_adjusted is None else p_adjusted
    sentence = f"{_direction(difference)} ({_range(difference)}), {_chance(difference, p)}"
    if p < _LEVEL and (difference.low > 0 or difference.high < 0):
        return "better" if difference.mean < 0 else "worse", sentence, None
    seeds = _more_seeds(difference, p, margin)
    if seeds is None:
        return "undecided", f"{sentence}; {_MOST_SEEDS} more seeds like these would not decide", None
    return "undecided", f"{sentence}; {seeds} more seed{'s' if seeds > 1 else ''} should decide", seeds


def _more_seeds(difference: Paired, p: float, margin: float) -> int | None:
    """Further seeds after which the expected interval excludes zero or fits the margin, if at most 1000."""
    assert difference.sd is not None
    assert difference.p_t is not None
    size, sd = abs(difference.mean), difference.sd
    # Holm's factor on this p-value: with several arms zero must be excluded at a stricter level.
    strict = _LEVEL / max(p / difference.p_t, 1.0) if difference.p_t > 0 else _LEVEL

    def decides(total: int) -> bool:
        error = sd / math.sqrt(total)
        excludes = stdtrit(total - 1, 1 - strict / 2) * error < size
        return bool(excludes or size + stdtrit(total - 1, 1 - _LEVEL / 2) * error <= margin)

    # The interval shrinks with every seed, so what once decides goes on deciding.
    seeds = 1 + bisect.bisect_left(range(difference.n + 1, difference.n + _MOST_SEEDS + 1), True, key=decides)
    return seeds if seeds <= _MOST_SEEDS else None


def _decimals(difference: Paired) -> int:
    """Digits after the point that show two figures of the interval's half width, or three of the mean."""
    half = 0.0 if difference.high is None else difference.high - difference.mean
    size, figures = (half, 2) if half > 0 else (abs(difference.mean), 3)
    return min(max(figures - 1 - math.floor(math.log10(size)), 0), 15)


def _direction(difference: Paired) -> str:
    size = f"{abs(difference.mean):.{_decimals(difference)}f}"
    if float(size) == 0:
        return "equal on average"
    return f"{'lower' if difference.mean < 0 else 'higher'} by {size}"


def _range(difference: Paired) -> str:
    """The interval, for a reader who has just been told the direction."""
    assert difference.low is not None
    assert difference.high is not None
    small, large = sorted((abs(difference.low), abs(difference.high)))
    decimals = _decimals(difference)
    if difference.low * difference.high >= 0:
        return f"{small:.{decimals}f} to {large:.{decimals}f}"
    return f"{-difference.low:.{decimals}f} lower to {difference.high:.{decimals}f} higher"


def _chance(difference: Paired, p: float) -> str:
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    adjusted = " (Holm)" if p != difference.p_t else ""
    least = 2.0 ** (1 - difference.n)
    few = (
        f" by Student's t; with {difference.n} seeds sign flips cannot go below {least:.2g}" if least >= _LEVEL else ""
    )
    return f"{shown}{adjusted}{few}"


def _finite(values: Sequence[float] | np.ndarray, what: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) == 0 or not np.isfinite(array).all():
        raise ArenaError(
            f"A comparison needs finite {what}, at least one: {array.tolist()}.",
            fix="Leave out the seeds whose runs failed, in every arm.",
        )
    return array
