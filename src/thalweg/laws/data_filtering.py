"""How hard to filter data depends on the budget: good data wears out when it is repeated.

Data is sorted by quality into buckets of N_b samples. A bucket has a utility b < 0, how fast samples from it lower the
error, and a half-life tau, after how many passes that utility is half. With n_j = min((j + 1) N, n), the samples seen
by the end of pass j = 0, 1, ... over a pool of N samples,

    y(n) = (a n_0)^b_0 * prod over j >= 1 of (n_j / n_(j-1))^b_j + d
    b_j  = mean over the pool's p buckets of b_i 2^(-j / (p tau_i)),    N = p N_b

since in a union of p buckets each is seen p times less often a sample. a sets the unit and d is the error that no data
removes; both are one for all buckets, or utilities could not be compared. Buckets are measured alone; what a union does
is predicted, and the best one is looked for among the nested unions, best utility first.

Fitted all together (a, d, and b and tau of each bucket) in log error by `robust`, where the authors walk a grid.

Source: Scaling Laws for Data Filtering (Goyal et al. 2024, arXiv:2404.07177), in the form it displays. Its released
program adds d before it multiplies with the later passes, so that d is no floor there; released() is that variant, to
reproduce its numbers. Its other variant (effective data in place of effective utility) is left out.

Units: samples (images or tokens) over `unit` (100000); y an error or a loss; passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from thalweg.errors import UserError
from thalweg.laws import robust

_UNIT = 1e5
# A bucket's utility is unknown where its interval spans more than this factor.
_WIDEST_FACTOR = 4.0
# A fall of fewer standard deviations of one measurement says nothing about its shape.
_LEAST_FALL = 3.0
_SLOWEST = 1e3


@dataclass(frozen=True)
class Bucket:
    """Data of one quality.

    Args:
        b: utility, below 0; the more negative, the better.
        tau: passes after which the utility is half; infinite for data that never wears out.
    """

    b: float
    tau: float


@dataclass(frozen=True)
class Selection:
    """The best union of buckets for a budget.

    Args:
        buckets: indices of the buckets to keep, best first.
        errors: predicted error of the nested unions of 1, 2, ... buckets.
        agreement: share of refits that keep as many buckets; nan for a law without refits.
    """

    buckets: tuple[int, ...]
    errors: tuple[float, ...]
    agreement: float


@dataclass(frozen=True)
class FilteringLaw:
    """Error as a function of samples seen and of the buckets they are drawn from.

    Args:
        buckets: all there are.
        bucket_size: samples in each.
        a: common scale, per `unit` samples.
        d: error that no data removes.
        unit: samples.
        fit: how it was fitted; None for given constants.
    """

    buckets: tuple[Bucket, ...]
    bucket_size: float
    a: float
    d: float
    unit: float = _UNIT
    fit: robust.RobustFit | None = field(default=None, repr=False, compare=False)

    def predict(self, samples: float, pool: Sequence[int]) -> float:
        """Error after training on `samples` drawn evenly from the buckets of a pool (their indices)."""
        return float(_errors(self._constants()[None], self._runs(samples, pool))[0, 0])

    def interval(self, samples: float, pool: Sequence[int], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Where a new run's error should fall.

        Raises:
            UserError: the law was not fitted here, or the pool is empty or unknown.
        """
        if self.fit is None:
            raise UserError("This law was not fitted here, so it has no interval.", fix="Fit it to runs of your own.")
        centers = np.log(_errors(self.fit.refits, self._runs(samples, pool)))[:, 0]
        return self.fit.interval(centers, level, seed)

    def select(self, samples: float) -> Selection:
        """The nested union of least predicted error for a budget of samples."""
        order = tuple(int(i) for i in np.argsort([bucket.b for bucket in self.buckets], kind="stable"))
        pools = [order[: count + 1] for count in range(len(order))]
        errors = [self.predict(samples, pool) for pool in pools]
        best = int(np.argmin(errors))
        agreement = math.nan
        if self.fit is not None:
            others = [_errors(self.fit.refits, self._runs(samples, pool))[:, 0] for pool in pools]
            agreement = float((np.argmin(others, axis=0) == best).mean())
        return Selection(pools[best], tuple(errors), agreement)

    def _constants(self) -> np.ndarray:
        pairs = [(math.log(-bucket.b), math.log(min(bucket.tau, 1e300))) for bucket in self.buckets]
        return np.array([math.log(self.a / self.unit), math.log(max(self.d, 1e-300)), *np.ravel(pairs)])

    def _runs(self, samples: float, pool: Sequence[int]) -> list[_Run]:
        members = tuple(pool)
        if not members or len(set(members)) != len(members) or not set(members) <= set(range(len(self.buckets))):
            raise UserError(f"A pool is a list of different buckets out of {len(self.buckets)}, not {list(pool)}.")
        return [_run(samples, members, self.bucket_size)]


@dataclass(frozen=True)
class _Run:
    """What a prediction needs: the buckets, log n_0, and log(n_j / n_(j-1)) of the later passes [J]."""

    pool: tuple[int, ...]
    first: float
    growth: np.ndarray


def fit(
    points: Sequence[tuple[int, float, float]] | np.ndarray,
    bucket_size: float,
    d: float | None = None,
    delta: float = 1e-3,
    spread: float | None = None,
    refits: int = 200,
    seed: int = 0,
) -> FilteringLaw:
    """Fits the law to runs on single buckets.

    Args:
        points: rows (bucket, samples seen, error); buckets are counted from 0, samples go beyond one pass.
        bucket_size: samples in each bucket.
        d: the error that no data removes, where it is known; None fits it.
        delta: where the Huber loss turns from square to linear, in log error.
        spread: standard deviation of log error over seeds where it is known.
        refits: simulated refits, for the intervals.
        seed: of the simulation.

    Raises:
        UserError: a bucket with too few evaluations or none beyond the first pass, fewer points than constants, an
            error at or below d, errors that do not fall, or utilities that the points leave open.
    """
    table = _check(points, bucket_size, d, spread)
    runs = [_run(samples, (int(bucket),), bucket_size) for bucket, samples, _ in table]
    count = int(table[:, 0].max()) + 1
    low, high = _bounds(count, table[:, 2], d)
    measured = np.log(table[:, 2])
    starts = _starts(count, table[:, 2], runs, d)
    found = robust.fit(
        lambda theta: np.log(_errors(theta, runs)), measured, starts, (low, high), delta, spread, refits, seed
    )
    _refuse_open(found, table)
    theta = found.theta
    buckets = tuple(Bucket(-float(np.exp(b)), float(np.exp(tau))) for b, tau in theta[2:].reshape(-1, 2))
    return FilteringLaw(buckets, bucket_size, float(np.exp(theta[0])) * _UNIT, float(np.exp(theta[1])), _UNIT, found)


def _refuse_open(found: robust.RobustFit, table: np.ndarray) -> None:
    fitted = np.log(table[:, 2]) - found.residuals
    for bucket in range(int(table[:, 0].max()) + 1):
        fall = float(np.ptp(fitted[table[:, 0] == bucket]))
        if fall < _LEAST_FALL * found.sigma:
            raise UserError(
                f"The error of bucket {bucket} falls by {fall:.2%}, no more than its noise ({found.sigma:.2%}).",
                fix="Evaluate at more and wider spaced numbers of samples.",
            )
    utilities = np.exp(found.refits[:, 2::2])
    bottom, top = np.quantile(utilities, [0.025, 0.975], axis=0)
    worst = int(np.argmax(top / bottom))
    if top[worst] > _WIDEST_FACTOR * bottom[worst]:
        raise UserError(
            f"The utility of bucket {worst} is left open: anywhere from {-bottom[worst]:.3g} to {-top[worst]:.3g}.",
            fix="Evaluate at more and wider spaced numbers of samples, or give d.",
        )


def released(samples: float, bucket: Bucket, bucket_size: float, a: float, d: float, unit: float = _UNIT) -> float:
    """Error of a bucket alone as the authors' program has it: ((a n_0)^b_0 + d) * prod (n_j / n_(j-1))^b_j."""
    run = _run(samples, (0,), bucket_size)
    worn = bucket.b * 0.5 ** (np.arange(1, len(run.growth) + 1) / bucket.tau)
    return float(((a / unit) ** bucket.b * math.exp(bucket.b * run.first) + d) * np.exp(worn @ run.growth))


def _run(samples: float, pool: tuple[int, ...], bucket_size: float) -> _Run:
    if not 0 < samples < math.inf:
        raise UserError(f"Samples seen must be a positive number, not {samples}.")
    size = bucket_size * len(pool)
    ends = np.minimum(np.arange(1, math.ceil(samples / size) + 1) * size, samples)
    return _Run(pool, math.log(ends[0]), np.diff(np.log(ends)))


def _errors(theta: np.ndarray, runs: Sequence[_Run]) -> np.ndarray:
    """Errors [S, R] of constants (log a / unit, log d, log -b_0, log tau_0, log -b_1, ...) [S, 2 + 2 B]."""
    utilities, half_lives = -np.exp(theta[:, 2::2]), np.exp(theta[:, 3::2])
    longest = max(len(run.growth) for run in runs)
    passes = np.arange(1, longest + 1)
    found = np.zeros((len(theta), len(runs)))
    for pool in {run.pool for run in runs}:
        places = [place for place, run in enumerate(runs) if run.pool == pool]
        growth = np.zeros((len(places), longest))
        for row, place in enumerate(places):
            growth[row, : len(runs[place].growth)] = runs[place].growth
        first = np.array([runs[place].first for place in places])
        for member in pool:
            left = 0.5 ** (passes / (len(pool) * half_lives[:, member, None]))
            exposure = theta[:, :1] + first + left @ growth.T
            found[:, places] += utilities[:, member, None] * exposure / len(pool)
    return np.exp(found) + np.exp(theta[:, 1:2])


def _bounds(count: int, errors: np.ndarray, d: float | None) -> tuple[np.ndarray, np.ndarray]:
    low = np.array([-60.0, -30.0, *[math.log(1e-5), math.log(0.05)] * count])
    high = np.array([60.0, math.log(errors.min()), *[math.log(5.0), math.log(_SLOWEST)] * count])
    if d is not None:
        low[1] = high[1] = math.log(max(d, 1e-300))
    return low, high


def _starts(count: int, errors: np.ndarray, runs: Sequence[_Run], d: float | None) -> np.ndarray:
    """Floors, utilities and half-lives on a grid, the same for all buckets; a meets the points on average."""
    shares = (0.02, 0.3, 0.6, 0.8, 0.9) if d is None else (1.0,)
    first = np.mean([run.first for run in runs])
    rows = []
    for share in shares:
        floor = share * errors.min() if d is None else max(d, 1e-300)
        level = np.log(errors - floor).mean()
        for utility in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
            for half_life in (1.0, 3.0, 10.0):
                pair = [math.log(utility), math.log(half_life)]
                rows.append([-level / utility - first, math.log(floor), *pair * count])
    return np.array(rows)


def _check(
    points: Sequence[tuple[int, float, float]] | np.ndarray, bucket_size: float, d: float | None, spread: float | None
) -> np.ndarray:
    table = np.asarray(points, dtype=float)
    if table.ndim != 2 or table.shape[1] != 3:
        raise UserError("Points must be rows of (bucket, samples seen, error).")
    if not (np.isfinite(table).all() and (table[:, 1:] > 0).all() and bucket_size > 0):
        raise UserError("Samples, errors and the size of a bucket must be positive and finite.")
    names = np.unique(table[:, 0])
    if not np.array_equal(names, np.arange(len(names))):
        raise UserError(f"Buckets must be counted from 0 without gaps, not {names.tolist()}.")
    for bucket in range(len(names)):
        seen = np.unique(table[table[:, 0] == bucket, 1])
        if len(seen) < 3 or seen[-1] <= bucket_size:
            raise UserError(
                f"Bucket {bucket} has {len(seen)} evaluations, the last after {seen[-1] / bucket_size:.2g} passes: "
                "its utility and half-life cannot be told apart.",
                fix="Evaluate at three numbers of samples at least, and repeat the bucket.",
            )
    constants = 1 + (d is None) + 2 * len(names)
    if len(table) <= constants and spread is None:
        raise UserError(f"{constants} constants need more than {len(table)} points.", fix="Evaluate more often.")
    if d is not None and not 0 <= d < table[:, 2].min():
        raise UserError(f"d must be at least 0 and below the lowest error, {table[:, 2].min():.4g}, not {d:g}.")
    return table
