"""Runs as curves for the annealing law: the rate of every step and the losses that were measured on the way.

Two kinds of losses can be fitted. "held_out": the evaluations, which look at the same tokens every time and so have
little noise, but are few. "train": the losses of the steps, averaged over stretches, which are many and noisy. A loss
belongs to the number of steps taken before it was measured: that of the s-th step was measured after s - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.errors import RunError
from thalweg.laws.annealing_features import Curve, averaged, warmup_steps
from thalweg.recipe import Recipe
from thalweg.runs import Run

MEASURES = ("held_out", "train")
ENOUGH_EVALUATIONS = 12  # over all runs: from here on they say more than training losses
_SKIP = 0.05
# What must be the same for two curves to follow one law.
_SAME = ("parameters", "context", "batch_size", "vocab_size", "optimizer", "weight_decay")


@dataclass(frozen=True)
class RunCurve:
    """One run, read.

    Attributes:
        folder: of the run. recipe, chosen: its recipe and its plan's decisions.
        rates: learning rate of every step taken [T].
        steps, losses: steps taken before each loss, and the loss in nats a token.
        total: steps that the run's own budget buys, as far as is known.
        bits_per_nat: bits a byte for a nat a token, of the losses' text.
        step_tokens, step_flops, step_seconds: what a step costs.
        corpus: hash of its corpus.
    """

    folder: Path
    recipe: Recipe
    chosen: dict[str, Any]
    rates: np.ndarray
    steps: np.ndarray
    losses: np.ndarray
    total: int
    bits_per_nat: float
    step_tokens: float
    step_flops: float
    step_seconds: float
    corpus: str

    @property
    def warmup(self) -> int:
        return warmup_steps(self.rates)

    @property
    def curve(self) -> Curve:
        """What is fitted: as in the paper's example nothing before twice the warm-up or 5% of the steps."""
        late = self.steps >= max(2 * self.warmup, _SKIP * len(self.rates))
        return Curve(self.rates, self.steps[late], self.losses[late], self.warmup)

    @property
    def finished(self) -> bool:
        return len(self.rates) >= self.total


def read(folders: Sequence[str | Path], measure: str | None = None) -> tuple[list[RunCurve], str]:
    """The curves of runs, and which losses they are of.

    Args:
        folders: of runs of one model, batch, optimizer and corpus.
        measure: "held_out" or "train"; when left out, evaluations if at least 12 can be fitted, else training losses.

    Raises:
        RunError: a run that cannot be read, has no steps or continues another, or runs that differ in what the law
            takes for given.
    """
    if measure is not None and measure not in MEASURES:
        raise RunError(f"there is no measure {measure!r}", where="--measure", fix=f"Choose {' or '.join(MEASURES)}.")
    if measure is None:
        found = [_read(Path(folder), "held_out") for folder in folders]
        late = sum(len(run.curve.steps) for run in found)
        measure = "held_out" if late >= ENOUGH_EVALUATIONS else "train"
        if measure == "train":
            found = [_read(Path(folder), measure) for folder in folders]
    else:
        found = [_read(Path(folder), measure) for folder in folders]
    for other in found[1:]:
        _check_alike(found[0], other)
    return found, measure


def _read(folder: Path, measure: str) -> RunCurve:
    run = Run.open(folder)
    recipe, plan = run.recipe, run.plan
    if getattr(recipe, "start", None) is not None:
        raise RunError(
            "this run continues another one, and the law counts from the first step",
            where=str(folder),
            fix="Predict from the run that it began with.",
        )
    lines = [line for line in run.metrics() if line.get("event") in ("step", "skip") and line.get("lr") is not None]
    if not lines:
        raise RunError("the run has no steps yet", where=str(folder), fix="Train it, or name another run.")
    last, rates = lines[-1], np.array([line["lr"] for line in lines], dtype=float)
    if measure == "held_out":
        evaluations = [line for line in run.metrics("evaluation") if line.get("held_out_loss") is not None]
        steps = np.array([line["step"] for line in evaluations], dtype=int)
        losses = np.array([line["held_out_loss"] for line in evaluations], dtype=float)
        bits = [line["held_out_bits_per_byte"] / line["held_out_loss"] for line in evaluations[-1:]]
    else:
        steps, losses = averaged(
            np.array([line["step"] for line in lines]),
            np.array([np.nan if line.get("loss") is None else line["loss"] for line in lines], dtype=float),
            warmup_steps(rates),
        )
        bits = [line["bits_per_byte"] / line["loss"] for line in lines[-1:] if line.get("loss")]
    # An evaluation at a step whose line is torn off would have no rate.
    known = (steps >= 1) & (steps <= len(rates))
    return RunCurve(
        folder=folder,
        recipe=recipe,
        chosen=plan["chosen"],
        rates=rates,
        steps=steps[known],
        losses=losses[known],
        total=max(round(len(rates) / max(last["progress"], 1e-9)), len(rates)),
        bits_per_nat=bits[0] if bits else float("nan"),
        step_tokens=last["tokens"] / len(rates),
        step_flops=last["flops"] / len(rates),
        step_seconds=last["seconds"] / len(rates),
        corpus=str(plan.get("data", {}).get("content_hash", recipe.data.corpus)),
    )


def _check_alike(one: RunCurve, other: RunCurve) -> None:
    differing = [name for name in _SAME if one.chosen.get(name) != other.chosen.get(name)]
    differing += ["corpus"] * (one.corpus != other.corpus)
    differing += [n for n in ("objective", "reweighting") if getattr(one.recipe, n) != getattr(other.recipe, n)]
    if differing:
        raise RunError(
            f"these runs differ in {', '.join(differing)}, and the law's constants belong to one setting",
            where=f"{one.folder}, {other.folder}",
            fix="Predict from runs that differ in schedule and length only.",
        )
