"""A machine's numbers as measured times say them: the roofline of `roofline`, read backwards.

Peaks of square products and copies are what a machine can do at best; a decoder meets less, and pays for starting
operators. Times of a few architectures and workloads give all three constants,

    log seconds_i = log sum over operators of (max(flops / peak_flops, bytes / bandwidth) + launch)

fitted by `robust` (Huber, 27 starts). A constant that none of the times shows is refused: a batch of one token says
nothing about the peak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thalweg.errors import UserError
from thalweg.laws import robust
from thalweg.laws.roofline import Architecture, Machine, Operator, Precision, Workload, operators

_CONSTANTS = ("peak_flops", "bandwidth", "launch")
# A constant that makes up less than this share of every measured time is not seen in them.
_LEAST_SHARE = 0.05
# Constants are looked for within this factor of what the machine was said to have.
_REACH = 1e4


@dataclass(frozen=True)
class Calibration:
    """A machine's numbers as measured times say them.

    Args:
        machine: constants that explain the times best.
        intervals: 95% interval of each constant that was fitted.
        error: median relative error of the fitted times.
    """

    machine: Machine
    intervals: dict[str, tuple[float, float]]
    error: float


def calibrate(
    points: Sequence[tuple[Architecture, Workload, float]],
    machine: Machine,
    precision: Precision,
    free: Sequence[str] = _CONSTANTS,
    seed: int = 0,
) -> Calibration:
    """Fits a machine's constants to measured times.

    Args:
        points: (architecture, workload, seconds).
        machine: where to start; constants that are not free keep its value.
        precision: that was measured with.
        free: constants to fit.
        seed: of the simulated refits that give the intervals.

    Raises:
        UserError: no more times than constants, times that are not positive, or a constant that none of them shows.
    """
    names, measured = _check([seconds for _, _, seconds in points], free)
    tables = [_table(operators(architecture, workload, precision)) for architecture, workload, _ in points]
    known = {"peak_flops": machine.peak_flops, "bandwidth": machine.bandwidth, "launch": machine.launch}

    def parts(theta: np.ndarray) -> np.ndarray:
        """Seconds bound by arithmetic, by bytes, and spent on starting [3, S, P]."""
        value = {name: np.full(len(theta), known[name]) for name in _CONSTANTS}
        value |= {name: np.exp(theta[:, place]) for place, name in enumerate(names)}
        return np.stack([_parts(table, *(value[name] for name in _CONSTANTS)) for table in tables], axis=-1)

    # A launch of nothing has no logarithm to start from; a microsecond is what the quickest take.
    start = np.log([max(known[name], 1e-6) for name in names])
    spans = np.array([-2.0, 0.0, 2.0])
    starts = start + np.stack(np.meshgrid(*[spans] * len(names)), axis=-1).reshape(-1, len(names))
    bounds = start - math.log(_REACH), start + math.log(_REACH)
    found = robust.fit(lambda t: np.log(parts(t).sum(axis=0)), np.log(measured), starts, bounds, delta=0.01, seed=seed)
    shares = parts(found.theta[None])[:, 0] / parts(found.theta[None])[:, 0].sum(axis=0)
    for name in names:
        if shares[_CONSTANTS.index(name)].max() < _LEAST_SHARE:
            raise UserError(
                f"None of these times shows the machine's {name}.",
                fix=f"Measure longer prompts and larger and smaller models, or leave {name} out of `free`.",
            )
    fitted = known | {name: float(np.exp(value)) for name, value in zip(names, found.theta, strict=True)}
    intervals = {name: robust.between(np.exp(found.refits[:, place]), 0.95) for place, name in enumerate(names)}
    return Calibration(Machine(**fitted), intervals, float(np.median(np.abs(np.expm1(-found.residuals)))))


def _check(seconds: Sequence[float], free: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Constants to fit in their order, and the measured times."""
    names = [name for name in _CONSTANTS if name in free]
    measured = np.array(seconds, dtype=float)
    if len(measured) <= len(names) or not names or len(names) != len(set(free)):
        raise UserError(f"{len(measured)} times cannot fit {list(free)}.", fix=f"Measure more; choose of {_CONSTANTS}.")
    if not (np.isfinite(measured).all() and (measured > 0).all()):
        raise UserError("Measured times must be positive and finite.")
    return names, measured


def _table(listed: list[Operator]) -> np.ndarray:
    return np.array([(one.flops, one.bytes, one.count) for one in listed]).T


def _parts(table: np.ndarray, peak: np.ndarray, bandwidth: np.ndarray, launch: np.ndarray) -> np.ndarray:
    flops, moved, count = table
    arithmetic, traffic = flops / peak[:, None], moved / bandwidth[:, None]
    bound = arithmetic >= traffic
    return np.stack([np.where(bound, arithmetic, 0) @ count, np.where(bound, 0, traffic) @ count, launch * count.sum()])
