"""What a continued run costs against one that was planned for the whole budget from the start.

A run of a budget is extended by as much again, from its last checkpoint and from the end of its trunk, and compared
with a run of twice the budget on the same held-out documents, over seeds. Goal: within 1%.

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


def measured(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    """Held-out bits per byte of the whole run and of both continuations."""
    from thalweg import Recipe, train
    from thalweg.sessions.extend import extend

    def recipe(steps: int) -> Any:
        settings = {"batch_size": options.batch_size, "evaluate_every": f"{steps} steps"}
        return Recipe.parse(budget=f"{steps} steps", model=options.model, seed=seed, training=settings)

    first = train(recipe(options.steps), folder / "first", quiet=True)
    whole = train(recipe(2 * options.steps), folder / "whole", quiet=True)
    more = f"+{options.steps} steps"
    trunk_left = options.steps - round(options.steps * 0.6)
    last = extend(first.folder, more, out=folder / "last", quiet=True)
    # From the end of the trunk the decayed steps are walked again, so that the total of steps kept is the same.
    stable = extend(
        first.folder,
        f"+{options.steps + trunk_left} steps",
        schedule="wsd:warmup=0.0,decay=0.4",
        start="stable",
        out=folder / "stable",
        quiet=True,
    )
    found = {"first": first, "whole": whole, "last": last, "stable": stable}
    return {name: float(result.bits_per_byte or float("nan")) for name, result in found.items()}


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
    for name, words in (("first", "half the budget"), ("last", "extended"), ("stable", "extended from its trunk")):
        ratios[name] = [run[name] / run["whole"] for run in runs]
        middle = sum(ratios[name]) / len(runs)
        goal = f"{GOAL}: {verdict(middle, GOAL, at_least=False)}" if name == "last" else ""
        mean = sum(run[name] for run in runs) / len(runs)
        rows.append([words, f"{mean:.4f}", spread(ratios[name]), goal])
    rows.append(["planned for it from the start", f"{sum(run['whole'] for run in runs) / len(runs):.4f}", "1", ""])
    header = ["run", "bits per byte", "over the planned one", "goal (at most)"]
    said = {name: value for name, value in vars(options).items() if name != "json"}
    finish(table(header, rows), {"options": said, "runs": runs, "ratios": ratios}, options.json)


if __name__ == "__main__":
    main()
