"""How far off is a forecast? Fit the annealing law on two runs, predict schedules and lengths that it has not seen.

For each model: one cosine run and one constant-then-decay run (wsd) are trained and fitted. Then other shapes and other
lengths are trained, with the same seed, batch, peak rate and data, and their held-out curves compared with what the law
said from their rates alone: error of the final loss, mean absolute error of the whole curve after the warm-up, and how
often the bands contain what was measured. Beside it the baseline that sees no schedule, a power law in steps,
L = E + A * steps^-alpha, fitted to the same losses in the same way.
Goals: final loss within 1.0% and the whole curve within 2% (mean absolute errors over unseen schedules), and bands that
cover at their rate. `law error` is the root mean square of the final losses' errors, beside the one that bands reckon
with (RESIDUAL_ERROR and LAW_ERROR in laws/lr_annealing.py come from such measurements).

Finished runs are kept in --runs and found again, so that a broken-off benchmark goes on from there.

Examples:
    python benchmarks/forecast.py --json results/forecast.json
    python benchmarks/forecast.py --model 1M --steps 2000 --optimizer adamw
    python benchmarks/forecast.py --model 0.2M --steps 200 --context 64 --batch 4 --evaluations 20
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
from _common import finish, say, table, verdict

FITTED = (("cosine", 1.0), ("wsd:decay=0.2", 1.0))
UNSEEN = (
    ("linear", 1.0),
    ("constant", 1.0),
    ("cosine:floor=0.1", 1.0),
    ("wsd:decay=0.4,shape=one_minus_sqrt", 1.0),
    ("uba:phi=5", 1.0),
    ("wsd_s:ends=0.5/1,decay=0.2", 1.0),
    ("infinite", 1.0),
    ("cosine", 0.5),
    ("linear", 0.5),
    ("cosine", 1.5),
    ("wsd:decay=0.1", 1.5),
    ("linear", 2.0),
)
FINAL_GOAL, CURVE_GOAL, LEVELS = 0.01, 0.02, (0.8, 0.95)
REFITS = 400


def trained(options: argparse.Namespace, model: str, schedule: str, length: float, settings: dict[str, Any]) -> Path:
    """The folder of a finished run of this schedule and length, trained now if there is none."""
    import thalweg
    from thalweg.recipe import Recipe
    from thalweg.runs import Run

    steps = round(options.steps * length)
    rate = f"-rate{options.rate:g}" if options.rate else ""
    name = f"{model}-{options.optimizer}-{schedule}-{steps}{rate}-seed{options.seed}"
    name = re.sub(r"[^A-Za-z0-9.=]+", "-", name)
    folder = options.runs / name
    if folder.exists() and any(Run.open(folder).metrics("finish")):
        return folder
    if folder.exists():
        raise SystemExit(
            f"{folder} holds a run that did not finish: remove it, or finish it with `thalweg train --resume`."
        )
    say(f"{model}: {schedule}, {steps} steps")
    recipe = Recipe.parse(
        f"{options.optimizer}+{schedule}",
        budget=f"{steps} steps",
        seed=options.seed,
        model=model,
        data={"corpus": options.corpus, "context": options.context},
        training={
            "batch_size": options.batch,
            "evaluate_every": f"{max(options.steps // options.evaluations, 1)} steps",
            **settings,
        },
    )
    thalweg.train(recipe, folder, quiet=True, show=False)
    return folder


def power_law(curves: list[Any]) -> Any:
    """L = E + A * steps^-alpha fitted to the curves together: the annealing law of a rate of 1, which never falls."""
    from thalweg.laws import annealing_fit

    steps = np.concatenate([curve.steps for curve in curves]).astype(float)
    losses = np.log(np.concatenate([curve.losses for curve in curves]))
    theta = annealing_fit.minimise(steps, np.zeros_like(steps), losses, 1e-3)
    return lambda at: annealing_fit.predict(theta[None], at.astype(float), np.zeros(len(at)))[0]


def judged(law: Any, baseline: Any, run: Any) -> dict[str, Any]:
    """One run against what was said of it, from the end of its warm-up on."""
    late = run.steps > run.warmup + 1
    steps, measured = run.steps[late], run.losses[late]
    said, plain = law.predict(run.rates, steps, run.warmup), baseline(steps)
    inside = {}
    for level in LEVELS:
        low, high = law.band(run.rates, steps, run.warmup, level)
        inside[f"{level:g}"] = ((low <= measured) & (measured <= high)).tolist()
    return {
        "schedule": str(run.recipe.schedule),
        "steps": steps.tolist(),
        "measured": measured.tolist(),
        "law": said.tolist(),
        "power_law": plain.tolist(),
        "inside": inside,
        "errors": {name: (one / measured - 1).tolist() for name, one in (("law", said), ("power_law", plain))},
    }


def one_model(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """Train, fit, predict and compare at one size."""
    from thalweg.laws.lr_annealing import CONVENTIONS, MOMENTA, fit
    from thalweg.runs import Run
    from thalweg.sessions.run_curves import read

    first = trained(options, model, *FITTED[0], {"peak_lr": options.rate} if options.rate else {})
    # What the planner chose for the first run holds for all, whatever their length.
    settings = {name: Run.open(first).plan["chosen"][name] for name in ("batch_size", "peak_lr", "weight_decay")}
    folders = [first, *(trained(options, model, *one, settings) for one in (*FITTED[1:], *UNSEEN))]
    runs, _ = read(folders, "held_out")
    fitted = [run.curve for run in runs[: len(FITTED)]]
    law = fit(fitted, MOMENTA, CONVENTIONS, bootstrap=REFITS, seed=options.seed)
    baseline = power_law(fitted)
    say(f"{model}: {law.to_dict()}")
    return {
        "law": law.to_dict() | {"intervals": law.intervals(), "law_error": law.law_error},
        "peak_lr": settings["peak_lr"],
        "fitted": [judged(law, baseline, run) for run in runs[: len(FITTED)]],
        "unseen": [judged(law, baseline, run) for run in runs[len(FITTED) :]],
    }


def rows(found: dict[str, Any]) -> list[list[str]]:
    """A line for each run: where it ended, and how far off the two laws were."""
    lines = []
    for kind in ("fitted", "unseen"):
        for one in found[kind]:
            law, plain = (np.array(one["errors"][name]) for name in ("law", "power_law"))
            lines.append(
                [
                    f"{one['schedule']}{' (fitted)' if kind == 'fitted' else ''}",
                    f"{one['steps'][-1]:,}",
                    f"{one['measured'][-1]:.4f}",
                    f"{100 * law[-1]:+.2f} %",
                    f"{100 * np.abs(law).mean():.2f} %",
                    "yes" if one["inside"]["0.95"][-1] else "no",
                    f"{100 * plain[-1]:+.2f} %",
                    f"{100 * np.abs(plain).mean():.2f} %",
                ]
            )
    return lines


def summary(unseen: list[dict[str, Any]]) -> dict[str, float]:
    """Means over unseen runs."""
    numbers: dict[str, float] = {}
    for name in ("law", "power_law"):
        errors = [np.abs(one["errors"][name]) for one in unseen]
        numbers[f"{name}_final"] = float(np.mean([one[-1] for one in errors]))
        numbers[f"{name}_curve"] = float(np.mean([one.mean() for one in errors]))
    numbers["law_error"] = float(np.sqrt(np.mean([one["errors"]["law"][-1] ** 2 for one in unseen])))
    for level in (f"{level:g}" for level in LEVELS):
        numbers[f"covered_{level}"] = float(np.mean([np.mean(one["inside"][level]) for one in unseen]))
        numbers[f"covered_final_{level}"] = float(np.mean([one["inside"][level][-1] for one in unseen]))
    return numbers


def report(options: argparse.Namespace, models: dict[str, Any]) -> str:
    """A table for each model and the sentences beneath it."""
    header = [
        "schedule",
        "steps",
        "final loss",
        "law: final",
        "curve",
        "in the 95% band",
        "steps alone: final",
        "curve",
    ]
    parts = []
    for model, found in models.items():
        numbers = found["summary"]
        parts += [
            f"{model}, {options.optimizer}, fitted to {len(FITTED)} runs of {options.steps} steps, "
            f"{len(found['unseen'])} unseen\n",
            table(header, rows(found)),
            f"\nFinal loss off by {numbers['law_final']:.2%} on average (goal {FINAL_GOAL:.1%}: "
            f"{verdict(numbers['law_final'], FINAL_GOAL, at_least=False)}), whole curves by {numbers['law_curve']:.2%} "
            f"(goal {CURVE_GOAL:.0%}: {verdict(numbers['law_curve'], CURVE_GOAL, at_least=False)}); "
            f"law error {numbers['law_error']:.2%}, reckoned with {found['law']['law_error']:.2%}.",
            f"A power law in steps alone: {numbers['power_law_final']:.2%} and {numbers['power_law_curve']:.2%}.",
            "Covered: "
            + ", ".join(
                f"{level:.0%} bands {numbers[f'covered_final_{level:g}']:.0%} of final losses and "
                f"{numbers[f'covered_{level:g}']:.0%} of all"
                for level in LEVELS
            )
            + ".\n",
        ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="size; may be repeated (1M and 4M)")
    parser.add_argument("--steps", type=int, default=1000, help="of the fitted runs (1000)")
    parser.add_argument("--optimizer", default="muon", help="arm without a schedule (muon)")
    parser.add_argument("--corpus", default="stdlib", help="(stdlib)")
    parser.add_argument("--context", type=int, help="tokens a window (the planner's)")
    parser.add_argument("--batch", type=int, help="windows a step (the planner's)")
    parser.add_argument("--rate", type=float, help="peak rate of all runs (the planner's)")
    parser.add_argument("--evaluations", type=int, default=40, help="of the fitted runs (40)")
    parser.add_argument("--seed", type=int, default=0, help="of all runs (0)")
    parser.add_argument("--runs", type=Path, default=Path("runs/forecast"), help="where runs are kept (runs/forecast)")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    models = {model: one_model(options, model) for model in options.model or ["1M", "4M"]}
    for found in models.values():
        found["summary"] = summary(found["unseen"])
    kept = ("steps", "optimizer", "corpus", "context", "batch", "rate", "evaluations", "seed")
    finish(
        report(options, models),
        {"options": {name: getattr(options, name) for name in kept}, "models": models},
        options.json,
    )


if __name__ == "__main__":
    main()
