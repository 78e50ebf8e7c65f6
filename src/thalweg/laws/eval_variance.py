"""How large must a difference be before it means anything? Noise of a metric, from runs that differ in the seed only.

Scores S[m, c] of seed m at checkpoint c. Spread over seeds, growth with training, and how far one stands above the
other:

    seed sd          mean over checkpoints c of sd over seeds of S[m, c]
    monotonicity     mean over seeds m of Kendall's tau-b between S[m, c] and 1..C
    signal to noise  mean over seeds / sd over seeds, both at the last checkpoint

The sd is taken at each checkpoint and averaged after: over seeds and checkpoints together it would count what training
gains as noise. The spread over seeds is not the error from having few test items (accuracy_half_width()), which is
usually the larger.

Source: Quantifying Variance in Evaluation Benchmarks (Madaan et al. 2024, arXiv:2406.10229). The paper's definition of
sd (n or n - 1) is not known to us; n - 1 is used unless asked otherwise. The rule of distinguishable() is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from thalweg.errors import UserError

_NORMAL = 1.96


def seed_sd(scores: Sequence[Sequence[float]] | np.ndarray, ddof: int = 1) -> float:
    """Standard deviation over seeds at each checkpoint, averaged over checkpoints, in the unit of the scores.

    Args:
        scores: [M seeds, C checkpoints].
        ddof: 1 divides by M - 1, 0 by M.

    Raises:
        UserError: not a full table of finite numbers, or no more than ddof seeds.
    """
    return float(_spread(_table(scores), ddof).mean())


def monotonicity(scores: Sequence[Sequence[float]] | np.ndarray, decreasing: bool = False) -> float:
    """How steadily the scores grow: Kendall's tau-b with the order of checkpoints, averaged over seeds.

    1 is a rise at every pair of checkpoints, -1 a fall. Near 0 training does not move the metric (as at chance
    level), which says nothing about the model's noise. A run whose scores are all equal counts as 0.

    Args:
        scores: [M seeds, C checkpoints], two checkpoints at least.
        decreasing: count falls as growth, as for a loss.

    Raises:
        UserError: not a full table of finite numbers, or fewer than two checkpoints.
    """
    from scipy.stats import kendalltau

    table = _table(scores)
    if table.shape[1] < 2:
        raise UserError("Whether a metric grows cannot be seen with fewer than two checkpoints.")
    order = np.arange(table.shape[1])
    taus = [0.0 if np.ptp(row) == 0 else float(kendalltau(row, order).statistic) for row in table]
    return -float(np.mean(taus)) if decreasing else float(np.mean(taus))


def signal_to_noise(scores: Sequence[Sequence[float]] | np.ndarray, ddof: int = 1) -> float:
    """Mean over seeds of the last checkpoint's score, over its standard deviation.

    Infinite (with the mean's sign) where all seeds ended alike: no noise was seen.

    Args:
        scores: [M seeds, C checkpoints].
        ddof: 1 divides by M - 1, 0 by M.

    Raises:
        UserError: not a full table of finite numbers, or no more than ddof seeds.
    """
    final = _table(scores)[:, -1:]
    mean, noise = float(final.mean()), float(_spread(final, ddof)[0])
    return mean / noise if noise > 0 else math.copysign(math.inf, mean)


def accuracy_half_width(accuracy: float, items: int) -> float:
    """Half width of the 95% interval of an accuracy on so many items: 1.96 sqrt(p (1 - p) / N), as a share.

    Args:
        accuracy: between 0 and 1.
        items: there are in the test.

    Raises:
        UserError: an accuracy outside [0, 1], or no items.
    """
    if not (0 <= accuracy <= 1 and items >= 1):
        raise UserError(f"An accuracy lies between 0 and 1, on at least one item: {accuracy} on {items}.")
    return _NORMAL * math.sqrt(accuracy * (1 - accuracy) / items)


def distinguishable(difference: float, sd: float, item_interval: tuple[float, float] | None = None) -> bool:
    """Whether two single runs differ by more than two seeds of one recipe would: |difference| > 1.96 sqrt(2) sd.

    The difference of two runs has twice the variance of one; two alike are told apart wrongly in 5% of cases.

    Args:
        difference: between two runs, a seed each.
        sd: over seeds of one run, as of seed_sd(), in the same unit.
        item_interval: low and high of a paired bootstrap over test items, where there are items: it must exclude 0
            as well.

    Raises:
        UserError: sd is negative or not a number.
    """
    if not sd >= 0:
        raise UserError(f"A standard deviation cannot be below zero or undefined: {sd}.")
    seen_in_items = item_interval is None or item_interval[0] > 0 or item_interval[1] < 0
    return abs(difference) > _NORMAL * math.sqrt(2) * sd and seen_in_items


def _spread(table: np.ndarray, ddof: int) -> np.ndarray:
    """Standard deviation over seeds [C] of a table [M, C]."""
    if len(table) <= ddof:
        raise UserError(
            f"A spread over seeds needs more than {len(table)}.", fix="Run the same recipe with more seeds."
        )
    # Relative to the first seed: equal scores then have a spread of exactly zero.
    return (table - table[0]).std(axis=0, ddof=ddof)


def _table(scores: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    rows = list(scores)
    if len({np.size(row) for row in rows}) != 1:
        raise UserError("Scores must be a table: as many checkpoints for every seed, one at least.")
    table = np.asarray(rows, dtype=float)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise UserError(f"Scores must be finite numbers, seeds by checkpoints; these have shape {table.shape}.")
    return table
