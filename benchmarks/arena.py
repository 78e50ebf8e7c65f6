"""What comparing costs beyond training: the wall-clock of a comparison over the bare training time of its runs.

A comparison of 4 arms on 3 seeds is made twice from nothing: one run at a time with all cores, and as many at a time as
the arena finds fastest. Bare training time is the sum of what the steps of the sequential runs took, without start,
evaluation and checkpoints. Goals: at most 1.10 sequentially, at most 0.65 where runs are small and share the cores.

Examples:
    python benchmarks/arena.py --json results/arena.json
    python benchmarks/arena.py --model 0.2M --budget "20 steps" --seeds 1
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import finish, say, table, verdict

ARMS = ("adamw+linear", "adamw+cosine", "muon+linear", "muon+cosine")
GOALS = {"sequential": 1.10, "divided": 0.65}


def compared(options: argparse.Namespace, jobs: int | None) -> dict[str, Any]:
    """A comparison from nothing: its results, with the wall-clock seconds of the whole call."""
    from thalweg import compare

    with tempfile.TemporaryDirectory(prefix="thalweg-benchmark-") as folder:
        began = time.monotonic()
        found = compare(
            ARMS,
            budget=options.budget,
            model=options.model,
            seeds=options.seeds,
            jobs=jobs,
            out=Path(folder) / "out",
            runs=Path(folder) / "runs",
        )
        return {"wall": time.monotonic() - began, **found.results}


def training_seconds(results: dict[str, Any]) -> float:
    """Seconds of all steps of all runs."""
    return sum(run["training_seconds"] for arm in results["workloads"][0]["arms"] for run in arm["runs"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="0.35M", help="(0.35M)")
    parser.add_argument("--budget", default="300 steps", help="(300 steps)")
    parser.add_argument("--seeds", type=int, default=3, help="(3)")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    import torch  # noqa: F401 - what the process imports once is not the comparison's cost

    say("one run at a time")
    sequential = compared(options, 1)
    say("divided as the arena finds fastest")
    divided = compared(options, None)
    bare = training_seconds(sequential)
    rows, numbers = [], {}
    for name, results in (("sequential", sequential), ("divided", divided)):
        ratio = results["wall"] / bare
        execution = results["execution"]
        met = verdict(ratio, GOALS[name], at_least=False)
        rows.append(
            [
                f"{execution['slots']} at a time, threads each: {execution['threads']}",
                f"{results['wall']:.1f}",
                f"{bare:.1f}",
                f"{ratio:.2f}",
                f"{GOALS[name]}: {met}",
            ]
        )
        numbers[name] = {"wall": results["wall"], "ratio": ratio, "execution": execution}
    header = ["4 arms, runs", "wall-clock, s", "bare training, s", "ratio", "goal (at most)"]
    said = {"model": options.model, "budget": options.budget, "seeds": options.seeds}
    finish(table(header, rows), {"options": said, "bare": bare, **numbers}, options.json)


if __name__ == "__main__":
    main()
