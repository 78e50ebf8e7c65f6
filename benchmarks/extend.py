"""What a continued run costs against one that was planned for the whole budget from the start.

A finished run of a budget is extended to twice the budget (`--budget "600 steps"`: from the end of its trunk, where its
decayed steps are walked again), and by as much again (`--budget "+300 steps"`) from there and from its last checkpoint.
All are compared with a run that was planned for twice the budget, on the same held-out documents, over seeds. Goal: a
run extended to twice the budget ends within 1%. What each cost in all, steps left behind included, is told.

Examples:
    python benchmarks/extend.py --json results/extend.json
    python benchmarks/extend.py --model 0.2M --steps 40 --seeds 1
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from _common import finish, say, spread, table, verdict

GOAL = 1.01
NAMES = {
    "whole": "planned for the budget from the start",
    "first": "half the budget",
    "twice": "extended to the budget",
    "stable": "extended by half the budget",
    "last": "the same, --from last",
}


def measured(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Held-out bits per byte of the whole run and of the continuations, and the steps that each has cost in all."""
    from thalweg import Recipe, train
    from thalweg.sessions.extend import extend

    def recipe(steps: int) -> Any:
        settings = {"batch_size": options.batch_size, "evaluate_every": f"{steps} steps"}
        return Recipe.parse(budget=f"{steps} steps", model=options.model, seed=seed, training=settings)

    first = train(recipe(options.steps), folder / "first", quiet=True)
    whole = train(recipe(2 * options.steps), folder / "whole", quiet=True)
    more = f"+{options.steps} steps"
    twice = extend(first.folder, f"{2 * options.steps} steps", out=folder / "twice", quiet=True)
    stable = extend(first.folder, more, out=folder / "stable", quiet=True)
    last = extend(first.folder, more, start="last", out=folder / "last", quiet=True)
    found = {"first": first, "whole": whole, "twice": twice, "stable": stable, "last": last}
    before = {"first": 0, "whole": 0}
    return {
        name: {"bits_per_byte": float(one.bits_per_byte or "nan"), "steps": one.step + before.get(name, options.steps)}
        for name, one in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="1M", help="(1M)")
    parser.add_argument("--steps", type=int, default=300, help="of the first run (300)")
    parser.add_argument("--batch-size", type=int, default=8, help="(8)")
    parser.add_argument("--seeds", type=int, default=2, help="(2)")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    runs = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory(prefix="thalweg-benchmark-") as folder:
            runs.append(measured(options, seed, Path(folder)))
        say(f"  seed {seed}: {runs[-1]}")
    rows, ratios = [], {}
    for name, words in NAMES.items():
        values = [run[name]["bits_per_byte"] for run in runs]
        ratios[name] = [run[name]["bits_per_byte"] / run["whole"]["bits_per_byte"] for run in runs]
        middle = sum(ratios[name]) / len(runs)
        goal = f"{GOAL}: {verdict(middle, GOAL, at_least=False)}" if name == "twice" else ""
        rows.append(
            [words, f"{runs[0][name]['steps']:,}", f"{sum(values) / len(runs):.4f}", spread(ratios[name]), goal]
        )
    header = ["run", "steps in all", "bits per byte", "over the planned one", "goal (at most)"]
    said = {name: value for name, value in vars(options).items() if name != "json"}
    finish(table(header, rows), {"options": said, "runs": runs, "ratios": ratios}, options.json)


if __name__ == "__main__":
    main()
