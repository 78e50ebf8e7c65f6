"""How sensitive is an arm to its learning rate? The same run at rates over three decades, and one number for it all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.arena.local import Local
from thalweg.arena.measured import Outcome, run_of
from thalweg.arena.submission import submitting
from thalweg.arena.workload import Workload
from thalweg.cache import cache_folder
from thalweg.errors import ArenaError
from thalweg.laws.sensitivity import RATES, sensitivity
from thalweg.runs import Run, output_folder, write_text


@dataclass(frozen=True)
class Sweep:
    """The runs of one arm over a grid of rates.

    Attributes:
        arm: as the user spelt it. rates: peak rates.
        losses: held-out, in nats a token, mean over seeds; None where a run diverged.
        initial: training loss of the first step, before anything was learnt.
        sensitivity: see laws.sensitivity, in nats.
    """

    arm: str
    rates: list[float]
    losses: list[float | None]
    initial: float
    sensitivity: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dict(vars(self))


def sweep(
    arm: str,
    *,
    rates: Sequence[float] = RATES,
    budget: str = "300 steps",
    model: str = "0.5M",
    corpus: str = "stdlib",
    seeds: int = 1,
    settings: dict[str, Any] | None = None,
    jobs: int | None = None,
    out: str | Path = "sensitivity",
    runs: str | Path = "runs/compared",
    quiet: bool = False,
) -> Sweep:
    """Train an arm at every rate and write `<out>/sensitivity.json` and `.png`.

    Args:
        rates: peak learning rates.
        budget, model, corpus, seeds, settings, jobs, runs, quiet: as for `compare`.

    Raises:
        UserError: an arm, a corpus or a budget that cannot be used; a first run that never began.
    """
    if len(set(rates)) < 2 or min(rates) <= 0 or seeds < 1:
        raise ArenaError("a sweep needs two different rates above 0 and a seed", where="--rates, --seeds")
    folder = output_folder(out)
    workload = Workload(model, corpus, budget, settings or {}, Path(runs))
    workload.prepare(arm)
    grid = sorted(set(rates))
    units = {(rate, seed): workload.unit(arm, seed, {"peak_lr": rate}) for rate in grid for seed in range(seeds)}
    rows = {rate: (workload.name, f"{arm} at {rate:g}") for rate in grid}
    execution = Local(cache_folder(), jobs)
    with submitting(execution, list(units.values()), list(rows.values()), {"seeds": seeds}, quiet=quiet) as submitter:
        outcomes = submitter.outcomes({key: (unit, rows[key[0]]) for key, unit in units.items()})
    losses: list[float | None] = []
    for rate in grid:
        found = [run_of(outcomes[rate, seed]) for seed in range(seeds)]
        ended = [run["loss"] for run in found if run["status"] == "finished"]
        losses.append(sum(ended) / len(ended) if len(ended) == seeds else None)
    initial = _initial(list(outcomes.values()))
    told = Sweep(arm, grid, losses, initial, sensitivity(losses, initial))
    write_text(folder / "sensitivity.json", json.dumps(told.to_dict(), indent=1) + "\n")
    _draw(told, folder / "sensitivity.png")
    return told


def _initial(outcomes: list[Outcome]) -> float:
    """Loss of the first step: all runs begin with the same weights, so any that began tells."""
    for outcome in outcomes:
        first = next(Run(outcome.unit.folder).metrics("step"), None)
        if first is not None and first["step"] == 1:
            return float(first["loss"])
    raise ArenaError("no run took its first step", where=str(outcomes[0].unit.log))


def _draw(told: Sweep, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    values = [told.initial if loss is None else min(loss, told.initial) for loss in told.losses]
    axes.plot(told.rates, values, marker="o")
    axes.axhline(told.initial, color="0.6", linestyle="--", label="untrained")
    axes.set_xscale("log")
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel("held-out loss, nats a token")
    axes.set_title(f"{told.arm}: sensitivity {told.sensitivity:.3f}")
    axes.legend()
    figure.savefig(path, dpi=150)
