"""From a finished run to the schedule that its gradient norms suggest for the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from thalweg import catalog
from thalweg.errors import RecipeError, RunError
from thalweg.runs import Run, write_text

# The metric that goes with each power of the weights.
METRICS = {1: "grad_l1", 2: "grad_norm"}


def norms_of(run: Run, metric: str) -> np.ndarray:
    """A metric of every step, at evenly spaced progress; float64 [steps].

    Under a budget of seconds steps are not evenly spaced, so values are joined by straight lines over progress.

    Raises:
        RunError: the run is not over, or has not recorded the metric.
    """
    # By step: what was trained again, after going back to a checkpoint, counts as it was last.
    lines = {line["step"]: line for line in run.metrics("step")}
    known = sorted((line["progress"], line[metric]) for line in lines.values() if line.get(metric) is not None)
    where = str(run.folder)
    if not known:
        raise RunError(
            f"the run has not recorded {metric}",
            where=where,
            fix="Train it with +record_norms in the arm; for plain gradient descent say --q 2.",
        )
    if known[-1][0] < 1.0 - 1e-6:
        raise RunError("the run is not over", where=where, fix=f"Finish it with `thalweg train --resume {where}`.")
    steps = max(lines)
    progress, values = np.array(known).T
    return np.interp(np.arange(1, steps + 1) / steps, progress, values)


def refine_run(folder: str | Path, out: str | Path, *, q: int = 1, window: float = 0.1) -> dict[str, Any]:
    """Refine a schedule from a run's gradient norms and write it to `out`, for the arm `refined:source=...`.

    Args:
        folder: the run, finished; it is only read.
        q: 1 for l1 norms (Adam and its like), 2 for l2 norms (plain gradient descent).
        window: of the running median, as a share of the run.

    Returns:
        What was written, without the factors.

    Raises:
        RunError: no such run, not over, or without norms. RecipeError: options out of range, a file that cannot be
        written, or norms that no schedule can be made of.
    """
    if q not in METRICS:
        raise RecipeError(f"q = {q} is neither 1 nor 2", where="--q", fix="1 for Adam, 2 for plain gradient descent.")
    run, path = Run.open(folder), Path(out)
    norms = norms_of(run, METRICS[q])
    facts = {
        "run": run.folder.resolve().name,
        "arm": run.recipe.arm,
        "norm": METRICS[q],
        "q": q,
        "window": window,
        "steps": len(norms),
    }
    schedule = catalog.resolve("refined").from_norms(norms, q=q, window=window)
    try:
        write_text(path, schedule.text(facts))
    except OSError as error:
        raise RecipeError(f"cannot write the refined schedule: {error.strerror}", where=str(path)) from None
    return facts
