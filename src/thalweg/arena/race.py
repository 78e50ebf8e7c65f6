"""A claim that is a training race: from a card's arms through a comparison to a verdict on the claim.

The last arm has the method, the first is what it is held against, and the card says what the source leads one to
expect of the two: better, tied or worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thalweg.catalog import Card
from thalweg.errors import ArenaError

HOLDS, FAILS, UNDECIDED = "holds here", "does not hold here", "undecided"
WORK = Path("runs/claims")
# Keys of a card's claim that are handed to the comparison as they are; what is left out has the comparison's default.
PASSED_ON = ("budget", "seeds", "model", "corpus", "tune", "margin", "settings")


def judge(expected: str, verdict: str) -> str:
    """What the comparison's verdict on the last arm says of the claim.

    "tied" means that the difference is known to be small, so it speaks against "better" and "worse"; "undecided" speaks
    for nothing.
    """
    if verdict == "undecided":
        return UNDECIDED
    return HOLDS if verdict == expected else FAILS


def race(card: Card, **execution: Any) -> dict[str, Any]:
    """Run the arms of a card's claim; finished runs are found again by the comparison.

    Args:
        card: whose claim has `arms`.
        execution: what `arena.compare.compare` is told besides what the card says (`on`, `jobs`, `quiet`).

    Returns:
        What a ledger's entry says of a race: verdict, sentence, numbers, arms, setting, interval, curves, seconds.

    Raises:
        UserError: what the comparison raises, and an `ArenaError` where an arm's runs failed: no runs, no verdict.
    """
    from thalweg.arena.compare import compare

    claim = card.claim
    told = {key: claim[key] for key in PASSED_ON if key in claim}
    comparison = compare(list(claim["arms"]), out=WORK / card.name, **told, **execution)
    return entry(card, comparison.results)


def entry(card: Card, results: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger's entry for the results of a comparison (their form: the arena's `results.json`)."""
    workload = results["workloads"][0]
    baseline, method = workload["arms"][0], workload["arms"][-1]
    for arm in (baseline, method):
        if arm["verdict"] == "failed" or arm["bits_per_byte"] is None:
            raise ArenaError(
                f"{arm['name']} failed: {arm['explanation'] or 'no run was finished'}",
                where=f"claim {card.name}",
                fix=f"Its runs are in the report, {(WORK / card.name / 'report.html').as_posix()}.",
            )
    difference = method["difference"]
    return {
        "verdict": judge(card.claim["expect"], method["verdict"]),
        "sentence": f"{method['name']} against {baseline['name']}, held-out bits per byte: {method['explanation']}.",
        "numbers": _numbers(baseline, method, results.get("margin")),
        "arms": [_arm(arm) for arm in workload["arms"]],
        "expect": card.claim["expect"],
        "budget": str(workload["budget"]),
        "model": workload["model"],
        "corpus": workload["corpus"],
        "seeds": list(results["seeds"]),
        "interval": [difference["low"], difference["high"]],
        "tuning": results.get("tuning"),
        "setting": workload.get("setting"),
        "curves": [curve for arm in workload["arms"] if (curve := mean_curve(arm)) is not None],
        "seconds": _seconds(workload),
        "machine": results.get("machine"),
        "versions": results.get("versions"),
    }


def _numbers(baseline: Mapping[str, Any], method: Mapping[str, Any], margin: float | None) -> dict[str, Any]:
    """The numbers of the last arm that a reader of the ledger asks for."""
    difference, speedup = method["difference"], method.get("speedup") or {}
    return {
        "bits_per_byte": method["bits_per_byte"]["mean"],
        "baseline_bits_per_byte": baseline["bits_per_byte"]["mean"],
        "difference": difference["mean"],
        "relative": difference["relative"],
        "p_t": difference["p_t"],
        "p_holm": difference["p_holm"],
        "p_permutation": difference["p_permutation"],
        "margin": margin,
        "more_seeds": method.get("more_seeds"),
        "speedup_steps": speedup.get("steps"),
        "speedup_seconds": speedup.get("seconds"),
        "overhead": method.get("overhead"),
        "seed_sd": (method.get("noise") or {}).get("seed_sd"),
    }


def _arm(arm: Mapping[str, Any]) -> dict[str, Any]:
    """An arm without its runs' folders and times: those are of the machine, not of the result."""
    kept = ("name", "arm", "peak_lr", "weight_decay", "bits_per_byte", "verdict", "skipped", "failures")
    seeds = {str(run["seed"]): run["bits_per_byte"] for run in arm["runs"] if run["status"] == "finished"}
    return {**{key: arm.get(key) for key in kept}, "seeds": seeds}


def mean_curve(arm: Mapping[str, Any]) -> dict[str, Any] | None:
    """Held-out bits per byte over steps, the mean over seeds and the lowest and highest; None without evaluations.

    Runs under a budget in seconds have evaluations at different steps: the n-th ones are taken together, as far as
    every run has one.
    """
    curves = [run["curve"] for run in arm["runs"] if run["status"] == "finished" and run.get("curve")]
    columns = [list(zip(*(curve[key] for curve in curves), strict=False)) for key in ("steps", "bits_per_byte")]
    points = [
        (sum(steps) / len(steps), values)
        for steps, values in zip(*columns, strict=False)
        if all(value is not None for value in values)
    ]
    if not points:
        return None
    return {
        "arm": arm["name"],
        "steps": [round(step, 1) for step, _ in points],
        "mean": [sum(values) / len(values) for _, values in points],
        "low": [min(values) for _, values in points],
        "high": [max(values) for _, values in points],
    }


def _seconds(workload: Mapping[str, Any]) -> float:
    """What all runs took together, also those that were found finished: what it costs to repeat this from nothing."""
    return round(sum(run.get("seconds") or 0.0 for arm in workload["arms"] for run in arm["runs"]), 1)


def methods_of(card: Card) -> list[str]:
    """Every method that takes part in a claim's arms, those that arms leave to their defaults included."""
    from thalweg.recipe import Recipe

    names = {card.name}
    for arm in card.claim.get("arms", ()):
        names |= {choice.name for choice in Recipe.parse(arm).choices}
    return sorted(names)
