"""`extend` and `anneal`: a new run that begins where another one left off; the old one is only read.

What is carried over: weights, the optimizer's memory, the place in the data. What is new: the budget, the clock, the
schedule. The recipe of the new run says where it comes from (`start`), so it can be resumed and repeated like any
other, and `lineage.json` lists its ancestors.
"""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.budget import Budget
from thalweg.errors import BudgetError, RunError
from thalweg.recipe import Choice, Recipe, Start
from thalweg.runs import Run, read_json
from thalweg.training.checkpoints import CheckpointFolder

if TYPE_CHECKING:
    from thalweg.sessions.train import Result
    from thalweg.training.trainer import Trainer

# Of a continuation whose schedule is left out: the share of all steps, its ancestors' too, that decays at the end.
DECAY = 0.4
REPLAY = 0.05
# Schedules whose trunk stands at the peak rate, where a decay from the peak continues it without a jump.
AT_PEAK = ("wsd", "constant")
FROM = ("auto", "last", "stable")


@dataclass(frozen=True)
class Ancestor:
    """A run to go on from.

    Attributes:
        run: its folder. step: of the checkpoint. stable: whether nothing had decayed by then.
    """

    run: Run
    step: int
    stable: bool

    @property
    def checkpoint(self) -> Path:
        return self.run.checkpoints / f"step-{self.step:08d}"

    @property
    def state(self) -> dict[str, Any]:
        """The checkpoint's clock: step, tokens, seconds."""
        return _clock(self.checkpoint)


def ancestor(folder: str | Path, start: str = "auto") -> Ancestor:
    """The checkpoint of a run to go on from.

    Args:
        folder: of the run.
        start: "last", its newest sound checkpoint; "stable", the one at the end of its trunk; "auto", the stable one
            if there is one at the peak rate, and else the last.

    Raises:
        RunError: no run, no sound checkpoint, or no stable one where that was asked for.
    """
    run = Run.open(folder)
    checkpoints = CheckpointFolder(run.checkpoints)
    newest, complaints = checkpoints.newest()
    for complaint in complaints:
        warnings.warn(complaint, stacklevel=2)
    trunk = getattr(run.recipe.schedule.build(), "trunk_end", None)
    on_trunk = trunk is not None and _clock(checkpoints.path(newest))["progress"] <= trunk
    # Stopped on its trunk, or a trunk to the end: the newest is the stable one.
    stable = newest if on_trunk else checkpoints.stable()
    if stable is not None and checkpoints.damage(stable):
        stable = None
    if start == "stable" and stable is None:
        raise RunError(
            f"the run has no stable checkpoint: {run.recipe.schedule} has no trunk, or it was not reached",
            where=str(folder),
            fix="Use --from last, which goes back to the peak rate from the last checkpoint.",
        )
    at_peak = run.recipe.schedule.name in (*AT_PEAK, "wsd_s")
    if stable is not None and (start == "stable" or (start == "auto" and at_peak)):
        return Ancestor(run, stable, True)
    return Ancestor(run, newest, on_trunk)


def _clock(checkpoint: Path) -> dict[str, Any]:
    return read_json(checkpoint / "state.json")["clock"]


def spent(old: Ancestor, unit: str) -> float:
    """What a run and its ancestors had spent by the checkpoint, in a budget's unit; nothing that was left behind."""
    clock, chosen, start = old.state, old.run.plan["chosen"], old.run.recipe.start
    if unit == "epochs":
        own = clock["tokens"] * chosen["epochs"] / chosen["tokens"]
    else:
        own = clock["step" if unit == "steps" else unit]
    return float(own) + (spent(Ancestor(Run.open(start.run), start.step, False), unit) if start else 0.0)


def left(old: Ancestor, budget: str) -> Budget:
    """What a continuation may spend: "+30min" is that, "30min" is what is left of it after what `old` has spent.

    Raises:
        BudgetError: no budget, or one that is spent already.
    """
    asked = Budget.parse(budget.strip().removeprefix("+"))
    if budget.strip().startswith("+"):
        return asked
    before = spent(old, asked.unit)
    if asked.amount <= before:
        raise BudgetError(
            f"{asked} in all are spent: step {old.step} of {old.run.folder} stands at {before:g} {asked.unit}",
            where="--budget",
            fix=f'Give more, or "+{asked}" for that much on top.',
        )
    return Budget(asked.amount - before, asked.unit)


def default_schedule(old: Ancestor, budget: Budget) -> str:
    """wsd_s: on along the trunk, decaying at the end; after a decay, from the peak straight down.

    From a trunk, `DECAY` of all steps decay, so that it ends as a run that was planned for the whole. After a decay
    what counts is a long fall: in the runs of benchmarks/extend.py another stable part at the peak gained nothing.
    """
    whole = spent(old, budget.unit) + budget.amount
    decay = min(DECAY * whole / budget.amount, 1.0) if old.stable else 1.0
    return f"wsd_s:warmup=0.0,decay={decay:.4g},shape=linear,floor=0.0"


def continued_recipe(
    old: Ancestor, budget: str, *, schedule: str | None = None, corpus: str | None = None, replay: float = REPLAY
) -> Recipe:
    """The recipe that goes on from `old` for another `budget`.

    Args:
        budget: "+30min" on top, or "1h" for the run and what it goes on from together; see `left`.
        schedule: as an arm spells it; `default_schedule` when left out.
        corpus: a new one; the old one is mixed in at the share `replay` of every batch.
    """
    recipe, chosen, clock = old.run.recipe, old.run.plan["chosen"], old.state
    before = recipe.start
    fields: dict[str, Any] = tomllib.loads(recipe.toml())
    more = left(old, budget)
    same = corpus is None or corpus == recipe.data.corpus
    fields |= {
        "budget": str(more),
        "model": chosen.get("model_folder") or chosen["model"],
        "schedule": schedule or default_schedule(old, more),
    }
    fields["training"] |= {name: chosen[name] for name in ("batch_size", "micro_batch", "peak_lr", "weight_decay")}
    fields["data"]["context"] = chosen["context"]
    start: dict[str, Any] = {
        "run": str(old.run.folder.resolve()),
        "step": old.step,
        "tokens": clock["tokens"] + (before.tokens if before else 0),
        "skip": clock["step"] + (before.skip if before else 0),
    }
    if not same:
        assert corpus is not None
        # The tokens must mean the same, so the tokenizer is the old run's; the new corpus is read from its beginning.
        start |= {"skip": 0, "corpus": recipe.data.corpus, "replay": replay}
        fields["data"] |= {"corpus": corpus, "tokenizer": str(old.checkpoint.resolve())}
    fields["start"] = start
    return Recipe.validated(fields, where=f"extend {old.run.folder}")


def inherit(trainer: Trainer, start: Start) -> None:
    """Give a fresh trainer what its start has learnt.

    Raises:
        RunError: the checkpoint is gone or damaged.
    """
    from thalweg.training.storage import inherit_checkpoint

    run = Run.open(start.run)
    folder = CheckpointFolder(run.checkpoints)
    problem = folder.damage(start.step)
    if problem:
        raise RunError(f"the checkpoint to start from cannot be used: {problem}", where=str(folder.path(start.step)))
    same = run.recipe.optimizer.name == trainer.recipe.optimizer.name
    if not same:
        warnings.warn("another optimizer than before: its memory starts empty", stacklevel=2)
    inherit_checkpoint(trainer, folder.path(start.step), moments=same)


def lineage(start: Start) -> list[dict[str, Any]]:
    """The ancestors of a run that starts there, oldest first."""
    run = Run.open(start.run)
    older = run.folder / "lineage.json"
    before = json.loads(older.read_text(encoding="utf-8")) if older.is_file() else []
    evaluations = [line for line in run.metrics("evaluation") if line["step"] <= start.step]
    return [
        *before,
        {
            "run": start.run,
            "step": start.step,
            "budget": str(run.recipe.budget),
            "schedule": str(run.recipe.schedule),
            "corpus": run.recipe.data.corpus,
            "bits_per_byte": evaluations[-1]["held_out_bits_per_byte"] if evaluations else None,
        },
    ]


def extend(
    folder: str | Path,
    budget: str,
    *,
    schedule: str | None = None,
    corpus: str | None = None,
    replay: float = REPLAY,
    start: str = "auto",
    out: str | Path | None = None,
    quiet: bool = False,
    announce: Callable[[dict[str, Any], Path], None] | None = None,
) -> Result:
    """Continue a run, finished or not, under a new budget, in a folder of its own.

    Args:
        folder: the run to go on from; it is only read.
        budget, schedule, corpus, replay: see `continued_recipe`.
        start: "auto", "last" or "stable", see `ancestor`.
        out, quiet, announce: as for `train`.

    Raises:
        UserError: what `train` raises, and a run that cannot be continued.
    """
    from thalweg.sessions.train import train

    recipe = continued_recipe(ancestor(folder, start), budget, schedule=schedule, corpus=corpus, replay=replay)
    return train(recipe, out, quiet=quiet, announce=announce)


def branch(folder: str | Path, share: float, decay: float) -> tuple[Ancestor, str, Choice]:
    """Where a run of `share` of a run's steps leaves its trunk: (checkpoint, budget from there, schedule).

    The branch decays over the last `decay` of its steps, counted from the very beginning, and goes on with the peak
    rate from the newest kept checkpoint until then.

    Raises:
        RunError: no trunk at the peak rate, or no checkpoint kept on it before the decay.
        BudgetError: a share out of range.
    """
    if not 0 < share <= 1 or not 0 < decay <= 1:
        raise BudgetError(f"{share:g} with a decay of {decay:g}: both are shares, above 0 and at most 1", where="--at")
    run = Run.open(folder)
    checkpoints = CheckpointFolder(run.checkpoints)
    if run.recipe.schedule.name not in AT_PEAK:
        raise RunError(
            f"{run.recipe.schedule.name} has no trunk at the peak rate to branch off from",
            where=str(folder),
            fix=f"Train the trunk with {' or '.join(AT_PEAK)}, or use `thalweg extend` with a schedule that fits.",
        )
    trunk = run.recipe.schedule.build().trunk_end
    total = round(run.plan["chosen"]["steps"] * share)
    leaving = total * (1 - decay)
    usable = [
        step
        for step in checkpoints.steps()
        if step <= leaving and _clock(checkpoints.path(step))["progress"] <= trunk + 1e-9
    ]
    if not usable:
        raise RunError(
            f"no checkpoint is kept on the trunk before step {leaving:.0f} (kept: {checkpoints.steps()})",
            where=str(folder),
            fix="Train the trunk with --set training.keep=100 and training.checkpoint_every, as '100 steps'.",
        )
    ahead = total - usable[-1]
    schedule = Choice(name="wsd", options={"warmup": 0.0, "decay": min((total - leaving) / ahead, 1.0)})
    return Ancestor(run, usable[-1], True), f"+{ahead} steps", schedule


def anneal(
    folder: str | Path, at: Sequence[float], *, decay: float = 0.2, out: str | Path | None = None, quiet: bool = False
) -> list[Result]:
    """Decayed models for several budgets off one stable run, as warmup-stable-decay promises.

    Args:
        folder: the run with the trunk; it is only read.
        at: shares of its budget, such as (0.5, 0.75, 1.0).
        decay: share of each branch's budget, counted from the very beginning, that is spent decaying.
        out: folder of the branches; `<folder>-anneal` when left out.

    Raises:
        UserError: what `branch` and `train` raise; found for all branches before the first is trained.
    """
    from thalweg.sessions.train import train

    target = Path(out) if out is not None else Path(f"{Path(folder)}-anneal")
    branches = [(share, *branch(folder, share, decay)) for share in at]
    recipes = [(share, continued_recipe(old, budget, schedule=str(how))) for share, old, budget, how in branches]
    return [train(recipe, target / f"at-{share:g}", quiet=quiet) for share, recipe in recipes]
