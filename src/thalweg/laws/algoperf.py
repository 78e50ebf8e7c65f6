"""Who is fastest over many workloads? Time to a target, performance profiles, and the score that sums them up.

Each workload has a target on held-out data; the time of a training algorithm is the clock at the *first* evaluation
that meets it, infinite if none does. Tuning is part of the algorithm: of the trials in a study the fastest counts, and
of several independent studies the median, so that a lucky draw of trials is no merit:

    t_w = median over studies j of min over trials i of t_ij        infinite times take part

Against the fastest on every workload, r = t / min t, an algorithm's profile and score over n workloads are

    rho(tau) = share of workloads with r <= tau
    B = 1 / (r_max - 1) * integral of rho from 1 to r_max = 1 / n * sum over w of max(0, r_max - r_w) / (r_max - 1)

B is 1 for the fastest everywhere and 0 for one that is nowhere within r_max. Scores are relative to the pool: another
competitor changes everybody's.

Source: Benchmarking Neural Network Training Algorithms (Dahl et al. 2023, arXiv:2306.07179). Its released program
integrates by a trapezoid over 100 taus and comes out up to 0.002 above the closed form that is used here. Held-out
variants of workloads, which the benchmark has dropped since, are left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from thalweg.errors import UserError


def time_to_target(
    positions: Sequence[float] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    target: float,
    maximise: bool = False,
) -> float:
    """Position of the first evaluation that meets the target; inf if none does.

    Args:
        positions: [C] of the evaluations, never falling: seconds, tokens or steps.
        values: [C] of the metric; one that is not a number meets nothing.
        target: met by values equal to it or below.
        maximise: met by values equal to it or above instead.

    Raises:
        UserError: the two differ in length, or positions fall.
    """
    where, measured = np.asarray(positions, dtype=float), np.asarray(values, dtype=float)
    if where.shape != measured.shape or where.ndim != 1:
        raise UserError(f"{where.size} positions do not fit {measured.size} values.")
    if not (np.diff(where) >= 0).all():
        raise UserError(f"Positions of evaluations must be in order: {where.tolist()}.")
    met = measured >= target if maximise else measured <= target
    return float(where[met.argmax()]) if met.any() else math.inf


def workload_time(studies: Sequence[Sequence[float]]) -> float:
    """Median over studies of the fastest trial, in the unit of the times.

    Args:
        studies: times to the target, a sequence of trials for each study; inf where a trial did not get there.

    Raises:
        UserError: no study, a study without trials, or a time that is no positive number.
    """
    if not studies or not all(len(trials) for trials in studies):
        raise UserError("A workload's time needs at least one study, and every study at least one trial.")
    return statistics.median(min(_positive(trials)) for trials in studies)


def ratios(times: Mapping[str, Sequence[float]], r_max: float = math.inf) -> dict[str, list[float]]:
    """Times over the fastest of each workload; inf where the target was not reached, by oneself or by anybody.

    Args:
        times: [W] for each algorithm, workloads in the same order; inf where the target was not reached.
        r_max: ratios above it become inf.

    Raises:
        UserError: no algorithms or no workloads, unequal numbers of them, or a time that is no positive number.
    """
    counts = {len(values) for values in times.values()}
    if len(counts) != 1 or 0 in counts:
        raise UserError(f"Every algorithm needs a time on every workload; there are {sorted(counts)}.")
    array = np.array([_positive(values) for values in times.values()])
    finite = np.isfinite(array)
    best = array.min(axis=0)
    # Where nobody arrives, inf / inf would be no number.
    relative = np.where(finite, array / np.where(np.isfinite(best), best, 1.0), math.inf)
    relative[relative > r_max] = math.inf
    return dict(zip(times, relative.tolist(), strict=True))


def profile(times: Mapping[str, Sequence[float]], taus: Sequence[float] | np.ndarray) -> dict[str, list[float]]:
    """Share of workloads on which each algorithm is within a factor tau of the fastest, for every tau [K]."""
    factors = np.asarray(taus, dtype=float)
    return {
        name: [float(share) for share in (np.array(row) <= factors[:, None]).mean(axis=1)]
        for name, row in ratios(times).items()
    }


def scores(times: Mapping[str, Sequence[float]], r_max: float = 4.0) -> dict[str, float]:
    """The integrated profile of each algorithm, between 0 and 1, in closed form.

    Args:
        times: as for ratios().
        r_max: factor on the fastest beyond which a time is worth nothing; above 1.

    Raises:
        UserError: as ratios() does, or r_max is not a finite number above 1.
    """
    if not 1 < r_max < math.inf:
        raise UserError(f"The largest ratio that counts must be a number above 1, not {r_max}.")
    return {
        name: float(np.maximum(0.0, r_max - np.array(row)).mean() / (r_max - 1)) for name, row in ratios(times).items()
    }


def _positive(times: Sequence[float]) -> list[float]:
    checked = [float(time) for time in times]
    if not all(time > 0 for time in checked):
        raise UserError(f"Times must be positive, or infinite where the target was not reached: {checked}.")
    return checked
