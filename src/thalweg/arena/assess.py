"""From the runs of a workload's arms to means, differences, speed-ups and verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from thalweg.arena.statistics import holm, mean_interval, paired, verdict
from thalweg.laws import algoperf, eval_variance

Arm = dict[str, Any]
AXES = ("steps", "tokens", "seconds")


def assess(arms: list[Arm], margin: float) -> None:
    """Fill in what `runs` imply, in place; the first arm is the baseline.

    Args:
        margin: relative to the baseline's mean; differences that small count as none.
    """
    baseline = arms[0]
    for arm in arms:
        _describe(arm, baseline)
    differences = [_difference(arm, baseline) for arm in arms[1:]]
    known = [found.p_t for found in differences if found is not None and found.p_t is not None]
    adjusted = iter(holm(known))
    baseline |= {"difference": None, "verdict": "baseline", "explanation": "", "more_seeds": None}
    if _failed(baseline):
        baseline |= {"verdict": "failed", "explanation": _failures(baseline)}
    for arm, found in zip(arms[1:], differences, strict=True):
        p = next(adjusted) if found is not None and found.p_t is not None else None
        if found is None or _failed(arm):
            why = _failures(arm) if _failed(arm) else "the baseline failed: there is nothing to compare with"
            arm |= {"difference": None, "verdict": "failed", "explanation": why, "more_seeds": None}
            continue
        middle = baseline["bits_per_byte"]["mean"]
        word, sentence, more = verdict(found, p, margin * middle)
        numbers = {name: getattr(found, name) for name in ("mean", "low", "high", "p_t", "p_permutation", "n")}
        arm |= {
            "difference": {**numbers, "relative": found.mean / middle, "p_holm": p},
            "verdict": word,
            "explanation": sentence,
            "more_seeds": more,
        }


def _finished(arm: Arm) -> dict[int, dict[str, Any]]:
    return {run["seed"]: run for run in arm["runs"] if run["status"] == "finished"}


def _failed(arm: Arm) -> bool:
    """Whether too little is left to speak of: an arm that diverges on any seed has failed."""
    return arm["failures"] > 0


def _failures(arm: Arm) -> str:
    errors = [f"seed {run['seed']}: {run['error']}" for run in arm["runs"] if run["status"] != "finished"]
    return "; ".join(errors)


def _describe(arm: Arm, baseline: Arm) -> None:
    """What concerns an arm by itself, and its speed beside the baseline's."""
    runs = _finished(arm)
    values = [run["bits_per_byte"] for run in runs.values()]
    arm["failures"] = len(arm["runs"]) - len(runs)
    found = mean_interval(values) if values else None
    names = ("mean", "low", "high", "sd", "n")
    arm["bits_per_byte"] = {name: getattr(found, name) for name in names} if found else None
    arm["skipped"] = sum(run["skipped"] for run in runs.values())
    arm["peak_memory"] = max((run["peak_memory"] for run in runs.values()), default=None)
    arm["step_seconds"] = statistics.median(run["step_seconds"] for run in runs.values()) if runs else None
    both = arm["step_seconds"] is not None and baseline["step_seconds"] is not None
    arm["overhead"] = arm["step_seconds"] / baseline["step_seconds"] - 1 if both and arm is not baseline else None
    reached = {axis: _reached(runs, _finished(baseline), axis) for axis in AXES}
    arm["reached"] = {axis: position for axis, (position, _) in reached.items()}
    ratios = {axis: ratio for axis, (_, ratio) in reached.items()}
    arm["speedup"] = None if arm is baseline else ratios
    arm["noise"] = _noise([run["curve"]["bits_per_byte"] for run in runs.values()], decreasing=True)
    measured = [run.get("metrics", {}) for run in runs.values()]
    common = sorted(set.intersection(*(set(told) for told in measured))) if measured else []
    arm["noise_of"] = {name: _noise([told[name] for told in measured], decreasing=False) for name in common}


def _difference(arm: Arm, baseline: Arm) -> Any:
    own, other = _finished(arm), _finished(baseline)
    common = sorted(own.keys() & other.keys())
    if not common:
        return None
    values, others = ([runs[seed]["bits_per_byte"] for seed in common] for runs in (own, other))
    return paired(values, others)


def _reached(
    runs: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]], axis: str
) -> tuple[float | None, float | None]:
    """(where the baseline's final loss was met, the baseline's total over that), medians over seeds.

    A seed that never gets there counts as infinite, so the median may be; then both are None.
    """
    positions, ratios = [], []
    for seed in sorted(runs.keys() & baseline.keys()):
        other = baseline[seed]
        position = crossing(runs[seed]["curve"][axis], runs[seed]["curve"]["bits_per_byte"], other["bits_per_byte"])
        positions.append(position)
        ratios.append(other["curve"][axis][-1] / position if position else math.inf)
    if not positions or math.isinf(statistics.median(positions)):
        return None, None
    return statistics.median(positions), statistics.median(ratios)


def crossing(positions: Sequence[float], values: Sequence[float], target: float) -> float:
    """Where a falling curve first meets a target, on straight lines between its points; infinite if it never does."""
    first = next((index for index, value in enumerate(values) if value <= target), None)
    if first is None:
        return math.inf
    if first == 0:
        return float(positions[0])
    before, after = values[first - 1], values[first]
    share = (before - target) / (before - after)
    return positions[first - 1] + share * (positions[first] - positions[first - 1])


def _noise(curves: list[list[float]], *, decreasing: bool) -> dict[str, Any] | None:
    """The figures of "Quantifying Variance in Evaluation Benchmarks" for one metric's curves, one for each seed."""
    length = min((len(curve) for curve in curves), default=0)
    if length < 2:
        return None
    scores = [curve[:length] for curve in curves]
    several = len(scores) > 1
    return {
        "seed_sd": finite(eval_variance.seed_sd, scores) if several else None,
        "monotonicity": float(eval_variance.monotonicity(scores, decreasing=decreasing)),
        "signal_to_noise": finite(eval_variance.signal_to_noise, scores) if several else None,
    }


def finite(figure: Callable[..., float], scores: Any) -> float | None:
    """A figure, None where it is infinite."""
    value = float(figure(scores))
    return value if math.isfinite(value) else None


def performance_profile(workloads: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Scores over several workloads, as AlgoPerf's: time to the baseline's final loss, relative to the fastest arm.

    The time is steps times the median seconds of a step, so that a moment of noise does not decide.
    """
    if len(workloads) < 2:
        return None
    names = [arm["name"] for arm in workloads[0]["arms"]]
    times: dict[str, list[float]] = {name: [] for name in names}
    for workload in workloads:
        for arm in workload["arms"]:
            steps = arm["reached"]["steps"]
            usable = steps is not None and not arm["failures"]
            times[arm["name"]].append(steps * arm["step_seconds"] if usable else math.inf)
    taus = [1 + 3 * index / 60 for index in range(61)]
    return {"taus": taus, "arms": algoperf.profile(times, taus), "scores": algoperf.scores(times)}
