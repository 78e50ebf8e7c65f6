"""Does the instability monitor warn of runs that go wrong, early, and keep quiet in those that do not?

The same small model is trained at a rate that suits it and at two that are far too high, without weight decay, as the
source provokes instabilities. What counts is the step of the first warning.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.small_run import small_run
from thalweg.errors import TrainingError
from thalweg.runs import Run

STEPS, EVERY = 100, 5
HEALTHY, UNSTABLE = 0.01, (0.5, 2.0)


def instability_warns(seed: int = 0, corpus: str = "stdlib") -> Finding:
    """Train 0.2M parameters at three rates; `corpus` as in a recipe."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {rate: _trained(rate, seed, corpus, Path(folder) / str(rate)) for rate in (HEALTHY, *UNSTABLE)}
    healthy = runs[HEALTHY]
    early = [runs[rate]["warned"] is not None and runs[rate]["warned"] <= STEPS // 2 for rate in UNSTABLE]
    worse = [runs[rate]["loss"] > 1.1 * healthy["loss"] for rate in UNSTABLE]
    numbers: dict[str, Any] = {"steps": STEPS}
    for rate, told in runs.items():
        numbers |= {f"first_warning_at_rate_{rate:g}": told["warned"], f"final_loss_at_rate_{rate:g}": told["loss"]}
    quiet = healthy["warned"] is None
    first = ", ".join(f"step {runs[rate]['warned']} at rate {rate:g}" for rate in UNSTABLE)
    return Finding(
        numbers=numbers,
        # Where the high rates do no harm there was nothing to warn of.
        holds=quiet and all(early) if all(worse) else None,
        sentence=(
            f"0.2M parameters, {STEPS} steps: first warning at {first}; at rate {HEALTHY:g} "
            f"{'none' if quiet else 'at step ' + str(healthy['warned'])}."
        ),
    )


def _trained(rate: float, seed: int, corpus: str, out: Path) -> dict[str, Any]:
    """The step of the first warning, and the mean training loss of the last tenth."""
    arm = f"adamw+constant:warmup=0.1+instability:every={EVERY}"
    settings = {"peak_lr": rate, "weight_decay": 0.0, "evaluate_every": f"{STEPS} steps"}
    # An unstable run may end early: what it wrote until then is what is asked for.
    with contextlib.suppress(TrainingError):
        small_run(arm, STEPS, seed, corpus, out, **settings)
    steps = list(Run.open(out).metrics("step"))
    last = [line["loss"] for line in steps[-STEPS // 10 :]]
    warned = next((line["step"] for line in steps if "warning" in line), None)
    return {"warned": warned, "loss": sum(last) / len(last)}
