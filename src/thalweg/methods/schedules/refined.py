"""Refined: the schedule that the gradient norms of one run suggest for the next.

A bound on the last iterate of stochastic gradient descent holds for steps proportional to w_t * sum_{s > t} w_s,
whatever the weights w >= 0. Equal weights give the straight line to zero; weights that shrink where gradients were
large,

    w_t      = G_t^-q                          G: norms of the raw gradient, smoothed by a running median
    factor_t = w_t * sum_{s = t+1}^{T-1} w_s   over its largest value; the last one is 0

give a schedule of this very problem: a warm-up where the first norms are large, an early fall where the last ones grow.
q = 2 with l2 norms is for plain gradient descent, q = 1 with l1 norms for Adam and its like.

Two runs: one with any schedule and `record_norms`, then `thalweg schedule refine RUN -o refined.json`, then the arm
`refined:source=refined.json` with the peak rate tuned again. No warm-up is asked for, so there is no such option.
Without a source all norms are taken to be equal, which is linear decay.

Source: "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement" (2023, arXiv:2310.07831). The
median's edges are theirs: the first value repeated at the left, the curve reflected at the right, where the end of
the schedule is decided. Over progress the factors are joined by straight lines, step t of T at (t + 1) / T.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.errors import RecipeError
from thalweg.methods.schedules.base import Schedule

FORMAT = "thalweg refined schedule 1"
MOST_BYTES = 64 * 2**20


def refine(norms: Sequence[float], steps: int | None = None, q: float = 1.0, window: float = 0.1) -> np.ndarray:
    """The factors of a run of `steps` steps, from the gradient norms of a run before.

    Args:
        norms: one a step, in order; at least 3, finite and not negative.
        steps: of the next run; as many as there are norms when left out.
        q: power of the weights: 1 for l1 norms and Adam, 2 for l2 norms and plain gradient descent.
        window: of the running median, as a share of the run.

    Returns:
        float64 [steps], the largest 1 and the last 0. The scale of the norms does not matter.

    Raises:
        RecipeError: norms or options that no schedule can be made of.
    """
    values = np.asarray(norms, np.float64)
    steps = len(values) if steps is None else steps
    where = "schedule refined"
    if values.ndim != 1 or len(values) < 3 or steps < 3:
        raise RecipeError(f"{values.size} norms for {steps} steps are too few", where=where, fix="3 are the least.")
    if not (np.isfinite(values).all() and (values >= 0.0).all()):
        raise RecipeError("the norms are not all finite numbers of at least 0", where=where)
    if not (0.0 <= window <= 1.0 and 0.0 <= q <= 4.0):
        raise RecipeError(
            f"q = {q:g} or window = {window:g} is out of range",
            where=where,
            fix="q is 1 (Adam) or 2 (plain gradient descent), window a share such as 0.1.",
        )
    if steps != len(values):
        values = np.interp(np.linspace(0.0, 1.0, steps), np.linspace(0.0, 1.0, len(values)), values)
    smooth = smoothed(values, window)
    if smooth.min() <= 0.0:
        raise RecipeError("the gradient was zero for long, which gives no weight", where=where)
    # Over the smallest norm: no weight is above 1, and none can overflow.
    weights = (smooth / smooth.min()) ** -q
    after = np.append(np.cumsum(weights[::-1])[::-1][1:], 0.0)
    factors = weights * after
    return factors / factors.max()


def smoothed(norms: np.ndarray, window: float) -> np.ndarray:
    """Running median over 2 * (window * T // 2) + 1 values; the first repeated at the left, reflected at the right."""
    from scipy.ndimage import median_filter

    width = 2 * (int(window * len(norms)) // 2) + 1
    padded = np.pad(norms, (0, 2 * width), mode="reflect")
    return median_filter(padded, size=width, mode="nearest")[: len(norms)]


def read(path: str | Path) -> np.ndarray:
    """The factors of a source file, checked: it may come from anyone.

    Raises:
        RecipeError: no such file, or one that `thalweg schedule refine` has not written.
    """
    fix = "Make it with `thalweg schedule refine RUN -o refined.json`."
    try:
        with open(path, "rb") as file:
            body = file.read(MOST_BYTES + 1)
        found = json.loads(body) if len(body) <= MOST_BYTES else None
    except OSError as error:
        raise RecipeError(f"cannot read the refined schedule: {error.strerror}", where=str(path), fix=fix) from None
    except (ValueError, RecursionError):
        raise RecipeError("the refined schedule is not valid JSON", where=str(path), fix=fix) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("factors"), list):
        raise RecipeError("this is no refined schedule", where=str(path), fix=fix)
    factors = found["factors"]
    good = all(type(factor) in (int, float) and 0.0 <= factor <= 1.0 for factor in factors)
    if len(factors) < 3 or not good:
        raise RecipeError("its factors are not 3 or more numbers in [0, 1]", where=str(path), fix=fix)
    return np.asarray(factors, np.float64)


class Refined(Schedule):
    """The factors of a file, over progress.

    Args:
        source: a file that `thalweg schedule refine` has written; "" is linear decay.

    Raises:
        RecipeError: a file that cannot be read or is none of ours.
    """

    def __init__(self, source: str = "") -> None:
        super().__init__(warmup=0.0)
        self.source = source
        self.factors: list[float] = read(source).tolist() if source else []

    @classmethod
    def from_norms(cls, norms: Sequence[float], q: float = 1.0, window: float = 0.1) -> Refined:
        """The schedule that the gradient norms of a run suggest, without a file; arguments as for `refine`."""
        schedule = cls()
        schedule.factors = refine(norms, q=q, window=window).tolist()
        return schedule

    def text(self, facts: Mapping[str, Any]) -> str:
        """What a source file holds: the factors, and `facts` (plain data) on where they come from."""
        return json.dumps({"format": FORMAT, **facts, "factors": self.factors}) + "\n"

    def shape(self, progress: float) -> float:
        """Straight lines between the factors; before the end of the first step the first one."""
        if not self.factors:
            return 1.0 - progress
        place = progress * len(self.factors) - 1.0
        index = min(max(math.floor(place), 0), len(self.factors) - 2)
        share = min(max(place - index, 0.0), 1.0)
        return (1.0 - share) * self.factors[index] + share * self.factors[index + 1]

    def state_dict(self) -> dict[str, Any]:
        """A fingerprint of the factors: a resumed run must not go on with others."""
        return {"factors": hashlib.sha256(np.asarray(self.factors, np.float64).tobytes()).hexdigest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state != self.state_dict():
            raise RecipeError(
                "the refined schedule is another one than this run was started with",
                where=self.source or "schedule refined",
                fix="Put the file back as it was.",
            )
