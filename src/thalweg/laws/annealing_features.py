"""A run as the annealing law sees it: how far the rate has carried it (S1), how much it has been annealed (S2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg.errors import UserError

CONVENTIONS = ("flat", "area")
STRETCHES = 60  # of averaged training losses in a run, about
_GROWTH = 0.1  # a stretch is at most this share of the steps before it: early losses fall fast


@dataclass(frozen=True)
class Curve:
    """A run as the law sees it.

    Args:
        rates: of every optimizer step [T].
        steps: how many steps had been taken when each loss was measured [P], each in 1..T.
        losses: measured [P].
        warmup: steps of the warm-up; the rate that follows them is its peak.
    """

    rates: np.ndarray
    steps: np.ndarray
    losses: np.ndarray
    warmup: int = 0


def warmup_steps(rates: Sequence[float] | np.ndarray) -> int:
    """Length of the rise that a schedule begins with: steps before the rate stops rising for the first time."""
    rising = np.diff(np.asarray(rates, float)) > 0
    return int(np.argmin(rising)) if len(rising) and not rising.all() else len(rising)


def features(
    rates: Sequence[float] | np.ndarray, momentum: float = 0.999, warmup: int = 0, convention: str = "flat"
) -> tuple[np.ndarray, np.ndarray]:
    """S1 and S2 after each step [T].

    Args:
        rates: of every step [T].
        momentum: share of a fall's pay-off a step that is left in the next step, in [0, 1].
        warmup: steps of the warm-up.
        convention: how it counts: "flat" or "area".
    """
    used = np.array(rates, dtype=float)
    check_curve(used, np.empty(0, int), np.empty(0), min(warmup, len(used) - 1))
    if convention not in CONVENTIONS or not 0 <= momentum <= 1:
        raise UserError(f"A momentum lies in [0, 1] and a convention in {CONVENTIONS}: {momentum}, {convention!r}.")
    peak = used[min(warmup, len(used) - 1)]
    flat = used.copy()
    flat[:warmup] = peak
    falls = -np.diff(flat, prepend=flat[:1])
    return np.cumsum(flat if convention == "flat" else used), np.cumsum(carried(falls, momentum))


def carried(values: np.ndarray, share: float) -> np.ndarray:
    """y_i = share * y_{i-1} + x_i along the last axis, in log(n) passes.

    scipy's lfilter does the same, but importing it takes longer than a short run should wait.
    """
    moving, reach = np.array(values, dtype=float), 1
    # After a pass y_i holds the last `reach` terms; what is below rounding needs no further ones.
    while reach < moving.shape[-1] and share**reach > 1e-18:
        moving[..., reach:] += share**reach * moving[..., :-reach]
        reach *= 2
    return moving


def check_curve(rates: np.ndarray, steps: np.ndarray, losses: np.ndarray, warmup: int) -> None:
    """Refuse what is no curve.

    Raises:
        UserError: lists that do not fit each other, steps outside the run, rates below 0.
    """
    if not (rates.ndim == 1 and len(rates) and np.isfinite(rates).all() and (rates >= 0).all() and rates.max() > 0):
        raise UserError("A curve's rates must be finite numbers, none below 0 and not all 0.")
    if steps.shape != losses.shape or steps.ndim != 1:
        raise UserError(f"{steps.size} steps do not fit {losses.size} losses.")
    if len(steps) and not (steps.min() >= 1 and steps.max() <= len(rates)):
        raise UserError(f"Losses must belong to steps in 1..{len(rates)}, the steps whose rates are known.")
    if not 0 <= warmup < len(rates):
        raise UserError(f"A warm-up of {warmup} steps does not fit a run of {len(rates)}.")


def usable(curve: Curve) -> Curve:
    """The curve with its finite losses after the warm-up."""
    rates, losses = np.asarray(curve.rates, dtype=float), np.asarray(curve.losses, dtype=float)
    steps = np.asarray(curve.steps, dtype=int)
    check_curve(rates, steps, losses, curve.warmup)
    keep = (steps > curve.warmup) & np.isfinite(losses) & (losses > 0)
    return Curve(rates, steps[keep], losses[keep], curve.warmup)


def fall(curve: Curve) -> float:
    """How far below its peak the rate has come by the last loss, as a share of the peak."""
    seen = curve.rates[curve.warmup : int(curve.steps.max(initial=0))]
    return float(1 - seen.min() / seen.max()) if len(seen) and seen.max() > 0 else 0.0


def schedules(curves: Sequence[Curve]) -> int:
    """How many different schedules there are; another seed of the same one teaches nothing about others."""
    return len({(len(curve.rates), *np.round(curve.rates / curve.rates.max(), 6).tolist()) for curve in curves})


def points(curves: Sequence[Curve], momentum: float, convention: str) -> tuple[np.ndarray, np.ndarray]:
    """S1 and S2 at all losses [P]."""
    found = [at(features(curve.rates, momentum, curve.warmup, convention), curve.steps) for curve in curves]
    return (
        np.concatenate([walk for walk, _ in found] or [np.empty(0)]),
        np.concatenate([annealed for _, annealed in found] or [np.empty(0)]),
    )


def at(found: tuple[np.ndarray, np.ndarray], steps: Any) -> tuple[np.ndarray, np.ndarray]:
    """Features after the given numbers of steps, or after every one."""
    walk, annealed = found
    if steps is None:
        return walk, annealed
    index = np.atleast_1d(np.asarray(steps, dtype=int)) - 1
    if len(index) and not (index.min() >= 0 and index.max() < len(walk)):
        raise UserError(f"Steps must lie in 1..{len(walk)}, the steps whose rates are given.")
    return walk[index], annealed[index]


def averaged(steps: np.ndarray, losses: np.ndarray, warmup: int) -> tuple[np.ndarray, np.ndarray]:
    """Training losses averaged over stretches after the warm-up: steps taken before the middle of each, and the mean.

    Args:
        steps: numbers of the steps that the losses were logged with, from 1.
        losses: of those steps; not finite ones are left out.
        warmup: steps of the warm-up.
    """
    kept = np.isfinite(losses) & (steps > warmup + 1)
    steps, losses = steps[kept] - 1, losses[kept]
    means, middles, first = [], [], 0
    widest = max((steps[-1] - warmup) / STRETCHES, 1) if len(steps) else 1
    while first < len(steps):
        width = max(1, round(min(_GROWTH * steps[first], widest)))
        stretch = slice(first, first + width)
        means.append(float(losses[stretch].mean()))
        middles.append(round(float(steps[stretch].mean())))
        first += width
    return np.array(middles, dtype=int), np.array(means, dtype=float)
