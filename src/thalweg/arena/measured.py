"""What a finished run folder says, as the numbers of a comparison."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any

from thalweg.arena.unit import Unit
from thalweg.runs import Run

# Numbers of every step that the house itself writes; what else stands in a line was added by a callback.
HOUSE = {
    *("event", "step", "tokens", "seconds", "flops", "progress", "loss", "grad_norm", "lr", "bits_per_byte"),
    *("param_norm", "tokens_per_second", "step_seconds", "mfu", "peak_memory"),
}
# Steps at the beginning that are not timed: memory is asked for, caches fill.
WARMING_SHARE = 0.1


@dataclass(frozen=True)
class Outcome:
    """What became of a unit.

    Attributes:
        answer: of the execution: `status`, and `error` where there is one.
        reused: found finished, not run now.
    """

    unit: Unit
    answer: dict[str, Any]
    reused: bool


def run_of(outcome: Outcome) -> dict[str, Any]:
    """One entry of `runs` in results.json."""
    unit, answer = outcome.unit, outcome.answer
    entry: dict[str, Any] = {
        "seed": unit.recipe.seed,
        "status": "finished" if answer["status"] == "finished" else "failed",
        "error": answer.get("error"),
        "run": str(unit.folder),
        "reused": outcome.reused,
    }
    if answer["status"] == "stopped":
        stopped = list(Run.open(unit.folder).metrics("stopped"))
        entry["error"] = stopped[-1]["reason"] if stopped else "training could not go on"
    if entry["status"] == "failed":
        entry["error"] = entry["error"] or f"the run was {answer['status']}"
        # As far as it came: a report shows where an arm left the road.
        return {**entry, "bits_per_byte": None, "curve": _curve(unit)}
    return {**entry, **_numbers(Run.open(unit.folder)), "curve": _curve(unit)}


def _curve(unit: Unit) -> dict[str, list[float]]:
    """The held-out evaluations of a run."""
    lines = list(Run(unit.folder).metrics("evaluation"))
    keys = {"steps": "step", "tokens": "tokens", "seconds": "seconds", "bits_per_byte": "held_out_bits_per_byte"}
    return {name: [line[key] for line in lines] for name, key in keys.items()}


def _numbers(run: Run) -> dict[str, Any]:
    last = list(run.metrics("evaluation"))[-1]
    steps = list(run.metrics("step"))
    finish = next(run.metrics("finish"))
    durations = [line["step_seconds"] for line in steps]
    return {
        "bits_per_byte": last["held_out_bits_per_byte"],
        "loss": last["held_out_loss"],
        "steps": finish["step"],
        "tokens": finish["tokens"],
        "seconds": finish["seconds"],
        # Steps alone: without start, evaluations and checkpoints.
        "training_seconds": sum(durations),
        "step_seconds": statistics.median(durations[int(WARMING_SHARE * len(steps)) :]),
        "peak_memory": max(line["peak_memory"] for line in steps),
        "skipped": sum(1 for _ in run.metrics("skip")),
        "metrics": _added(steps),
    }


def _added(steps: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What callbacks measured on the way, by name, in the order of the steps at which they did."""
    found: dict[str, list[float]] = {}
    for line in steps:
        for name, value in line.items():
            if name not in HOUSE and isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(name, []).append(value)
    return found


def progress_of(unit: Unit) -> float:
    """Share of the budget that a run at work has spent, from the last line of its metrics; 0 where there is none."""
    try:
        with (unit.folder / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - 4096, 0))
            lines = file.read().splitlines()
    except OSError:
        return 0.0
    for line in reversed(lines):
        try:
            return float(json.loads(line)["progress"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0.0
