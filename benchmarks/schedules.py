"""What is a schedule worth under a small budget? All of them at a quarter, half and all of a number of steps.

Each schedule is run with each budget from the start (a schedule knows its budget), its peak rate chosen among the same
few rates on a seed and a half of the held-out documents of their own; then it runs with the seeds that are reported,
on the other half. All other options are the cards' defaults. Differences from linear are paired by seed.

refined is made from the gradient norms of a run with linear decay, which nobody is charged for here; power takes its
amplitude for windows of 256 tokens. Left out: dal (for plain gradient descent only) and fedhyper (trains by clients).

Finished runs are kept in --runs and found again, so that a broken-off benchmark goes on from there.

Examples:
    python benchmarks/schedules.py --json results/schedules.json --page docs/guide/schedules.md
    python benchmarks/schedules.py --model 0.1M --steps 40 --seeds 2 --rates 1/2 --schedule linear --schedule cosine
"""

from __future__ import annotations

import argparse
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

from _common import finish, machine, say, table

BASELINE = "linear"
SCHEDULES = (
    BASELINE,
    "constant",
    "cosine",
    "wsd",
    "wsd:decay=0.4",
    "wsd:decay=0.2,shape=one_minus_sqrt",
    "wsd_s:ends=0.5/1",
    "uba",
    "uba:phi=5",
    "power:a=0.29",
    "infinite",
    "rewarm_redecay",
    "refined",
    "autolrs",
    "hypergradient",
)
SHARES = (0.25, 0.5, 1.0)
Runs = dict[tuple[Any, ...], dict[str, Any]]


class Bench:
    """One budget: the workload and the runs made on it."""

    def __init__(self, options: argparse.Namespace, share: float) -> None:
        from thalweg.arena.workload import Workload

        self.options, self.steps = options, round(options.steps * share)
        settings = {"training.batch_size": options.batch, "data.context": options.context}
        self.workload = Workload(options.model, options.corpus, f"{self.steps} steps", settings, options.runs)
        self.workload.prepare(self.arm(BASELINE))
        self.base_rate = self.workload.defaults(self.arm(BASELINE))["peak_lr"]

    def arm(self, schedule: str) -> str:
        """The arm of a schedule; refined is made here, from a run of its own."""
        if schedule != "refined":
            return f"{self.options.optimizer}+{schedule}"
        return f"{self.options.optimizer}+refined:source={self.refined}"

    def refine(self) -> None:
        """Make the refined schedule of this budget."""
        from thalweg.arena.workload import TUNING_SEED
        from thalweg.sessions.refining import refine_run

        self.refined = self.options.runs / f"refined-{self.steps}.json"
        unit = self.workload.unit(f"{self.arm(BASELINE)}+record_norms", TUNING_SEED)
        (found,) = self.perform({("norms",): unit}).values()
        refine_run(found["run"], self.refined)

    def perform(self, units: dict[tuple[Any, ...], Any]) -> Runs:
        """Run the units, or find them finished."""
        from thalweg.arena.local import Local
        from thalweg.arena.measured import run_of
        from thalweg.arena.submission import submitting
        from thalweg.cache import cache_folder

        rows = {key[0]: (f"{self.steps} steps", str(key[0])) for key in units}
        expected = {"seeds": len(units) // len(rows)}
        with submitting(Local(cache_folder(), None), list(units.values()), list(rows.values()), expected) as submitter:
            outcomes = submitter.outcomes({key: (unit, rows[key[0]]) for key, unit in units.items()})
        return {key: run_of(outcome) for key, outcome in outcomes.items()}

    def tuned(self, schedules: list[str]) -> dict[str, dict[str, Any]]:
        """The rates tried for each schedule, what they gave, and the best."""
        from thalweg.arena.workload import TUNING_SEED

        rates = [float(f"{self.base_rate * factor:.3g}") for factor in self.options.rates]
        units = {
            (schedule, rate): self.workload.unit(self.arm(schedule), TUNING_SEED, {"peak_lr": rate}, tuning=True)
            for schedule in schedules
            for rate in rates
        }
        found = self.perform(units)
        told = {}
        for schedule in schedules:
            tried = {rate: found[schedule, rate]["bits_per_byte"] for rate in rates}
            ended = {rate: value for rate, value in tried.items() if value is not None}
            best = min(ended, key=ended.__getitem__)
            if not ended:
                raise SystemExit(f"{schedule} diverged with every rate that was tried: {rates}")
            told[schedule] = {"tried": list(tried.items()), "best": best, "edge": best in (min(rates), max(rates))}
        return told

    def measured(self, schedules: list[str]) -> dict[str, dict[str, Any]]:
        """Each schedule at its best rate, over seeds."""
        tuned = self.tuned(schedules)
        seeds = range(self.options.seeds)
        units = {
            (schedule, seed): self.workload.unit(self.arm(schedule), seed, {"peak_lr": tuned[schedule]["best"]})
            for schedule in schedules
            for seed in seeds
        }
        found = self.perform(units)
        return {
            schedule: {
                "arm": schedule,
                "steps": self.steps,
                **tuned[schedule],
                "values": [found[schedule, seed]["bits_per_byte"] for seed in seeds],
            }
            for schedule in schedules
        }


def judge(found: dict[str, dict[str, Any]]) -> None:
    """Add means, and paired differences from the baseline with Holm's adjustment; infinity where a run diverged."""
    from thalweg.arena.statistics import holm, mean_interval, paired, verdict

    for one in found.values():
        one["mean"] = mean_interval(one["values"]).mean if None not in one["values"] else math.inf
    others = [one for name, one in found.items() if name != BASELINE and math.isfinite(one["mean"])]
    differences = [paired(one["values"], found[BASELINE]["values"]) for one in others]
    adjusted = holm([difference.p_t or 1.0 for difference in differences])
    for one, difference, p in zip(others, differences, adjusted, strict=True):
        one |= {"difference": difference.mean, "low": difference.low, "high": difference.high, "p_holm": p}
        one["verdict"] = verdict(difference, p, margin=0.0)[0]


def report(budgets: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A table: schedules by their loss with the whole budget, and a line on rates at the edge."""
    last = list(budgets.values())[-1]
    header = ["schedule", *(f"{steps} steps" for steps in budgets), "against linear at the last", "peak rates"]
    rows = []
    for name in sorted(last, key=lambda one: last[one]["mean"]):
        cells = [f"{found[name]['mean']:.4f}" for found in budgets.values()]
        one = last[name]
        against = ""
        if "difference" in one:
            against = f"{one['difference']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f}), {one['verdict']}"
        rates = ", ".join(f"{found[name]['best']:g}{'*' if found[name]['edge'] else ''}" for found in budgets.values())
        rows.append([name, *cells, against, rates])
    return table(header, rows)


def draw(budgets: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Loss over that of linear, against the budget, one line a schedule."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "thalweg"
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    steps = [int(key) for key in budgets]
    names = sorted(budgets[str(steps[-1])], key=lambda one: budgets[str(steps[-1])][one]["mean"])
    for number, name in enumerate(names):
        values = [found[name]["mean"] / found[BASELINE]["mean"] for found in budgets.values()]
        style = (
            {"linewidth": 2.5, "color": "black"} if name == BASELINE else {"linestyle": ("-", "--", ":")[number % 3]}
        )
        axes.plot(steps, values, marker="o", label=name, **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.set_xlabel("budget, steps")
    axes.set_ylabel("held-out bits per byte over those of linear")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def page(options: argparse.Namespace, text: str, figure: Path) -> str:
    """The page of the guide: what was run, the table, the figure."""
    where = machine()
    return f"""# Schedules under small budgets

Every schedule of the catalogue at a quarter, half and all of {options.steps} steps, each run from the start with its
own budget: model {options.model}, {options.optimizer}, {options.batch} windows of {options.context} tokens a step,
{options.seeds} seeds. For each schedule and budget the best of {len(options.rates)} peak rates was found first, on a
seed and on held-out documents of their own; all other options are defaults. `autolrs` pays for its search out of the
budget; `refined` was made from a run with linear decay that it does not pay for. `dal` (for plain gradient descent) and
`fedhyper` (trains by clients) have no place in this table.

Held-out bits per byte, mean over seeds, and the difference from linear with its 95% interval (Student's t over paired
seeds); better or worse where that stands after Holm's adjustment for all of them. A star: the best rate lies at the
edge of what was tried. Small models and few seeds: what this says is about budgets of this size.

{text}

![Bits per byte of every schedule over those of linear, against the budget](figures/{figure.name})

Measured by `python benchmarks/schedules.py` on {where["processor"]}, torch {where["torch"]}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="0.2M", help="(0.2M)")
    parser.add_argument("--steps", type=int, default=400, help="of the whole budget (400)")
    parser.add_argument("--optimizer", default="adamw", help="(adamw)")
    parser.add_argument("--corpus", default="stdlib", help="(stdlib)")
    parser.add_argument("--context", type=int, default=256, help="tokens a window (256)")
    parser.add_argument("--batch", type=int, default=8, help="windows a step (8)")
    parser.add_argument("--seeds", type=int, default=3, help="(3)")
    parser.add_argument(
        "--rates",
        default="0.5/1/2/4",
        type=lambda text: [float(Fraction(part)) for part in text.split("/")],
        help="peak rates to try, in units of the optimizer's default (0.5/1/2/4)",
    )
    parser.add_argument("--schedule", action="append", help="may be repeated (all)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/schedules"), help="where runs are kept (runs/schedules)"
    )
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    parser.add_argument("--page", type=Path, help="write table and plot for the documentation here")
    options = parser.parse_args()
    schedules = list(dict.fromkeys([BASELINE, *(options.schedule or SCHEDULES)]))
    budgets = {}
    for share in SHARES:
        bench = Bench(options, share)
        if "refined" in schedules:
            bench.refine()
        say(f"{bench.steps} steps: {len(schedules) * (len(options.rates) + options.seeds)} runs")
        budgets[str(bench.steps)] = bench.measured(schedules)
        judge(budgets[str(bench.steps)])
    text = report(budgets)
    if options.page:
        figure = options.page.parent / "figures" / f"{options.page.stem}.svg"
        draw(budgets, figure)
        options.page.write_text(page(options, text, figure), encoding="utf-8")
    kept = ("model", "steps", "optimizer", "corpus", "context", "batch", "seeds", "rates")
    finish(text, {"options": {name: getattr(options, name) for name in kept}, "budgets": budgets}, options.json)


if __name__ == "__main__":
    main()
