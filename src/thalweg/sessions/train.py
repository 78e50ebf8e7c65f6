"""`train` and `resume`: the whole way from a recipe to a finished, interrupted or refused run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.data import TokenStore
from thalweg.errors import RunError, TrainingError
from thalweg.planner.measure import Measure, speed
from thalweg.planner.plan import Planner
from thalweg.planner.profile import profile
from thalweg.recipe import Recipe
from thalweg.reports import write_report
from thalweg.runs import Run
from thalweg.sessions.assemble import assemble
from thalweg.sessions.closing import Closing
from thalweg.sessions.environment import describe
from thalweg.sessions.extend import inherit, lineage
from thalweg.sessions.training_data import open_store
from thalweg.training import process
from thalweg.training.checkpoints import CheckpointFolder
from thalweg.training.parallel import Parallel
from thalweg.training.storage import load_checkpoint
from thalweg.training.trainer import Trainer


@dataclass(frozen=True)
class Result:
    """What became of a run.

    Attributes:
        folder: the run folder.
        step, tokens, seconds: what was spent.
        bits_per_byte, low, high: held out, with the 95% interval over documents; None when interrupted.
        signal: the signal that ended the run early, or None.
    """

    folder: Path
    step: int
    tokens: int
    seconds: float
    bits_per_byte: float | None
    low: float | None
    high: float | None
    signal: int | None

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "latest"


def make_plan(
    recipe: Recipe,
    *,
    started: float | None = None,
    memory: float | None = None,
    parallel: Parallel | None = None,
    quiet: bool = False,
    measure: Measure = speed,
) -> tuple[dict[str, Any], TokenStore]:
    """Plan a recipe: (plan as plain data, token store). `measure` times a size, see `Planner`."""
    began = time.monotonic() if started is None else started
    parallel = parallel or Parallel(recipe.training.device)
    process.keep_freed_memory()
    store = open_store(recipe, parallel, progress=not quiet and parallel.main)
    machine = profile()
    process.set_threads(machine.threads)
    seconds = recipe.budget.amount - (time.monotonic() - began)
    planner = Planner(
        recipe,
        store,
        machine,
        device=parallel.device,
        world_size=parallel.world_size,
        seconds=seconds,
        memory=memory,
        measure=measure,
    )
    return parallel.share(planner.plan() if parallel.main else None), store


def train(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    started: float | None = None,
    quiet: bool = False,
    memory: float | None = None,
    announce: Callable[[dict[str, Any], Path], None] | None = None,
    plan: dict[str, Any] | None = None,
    show: bool = True,
) -> Result:
    """Train a recipe in a new run folder.

    Args:
        recipe: what to train and what to spend.
        out: the run folder; `runs/<date>-<time>` when left out.
        started: `time.monotonic()` when the budget's time began; now when left out.
        quiet: no progress on standard error.
        memory: bytes that training may use.
        announce: called on rank 0 with the plan and the folder before training begins.
        plan: what `make_plan` gave for this recipe, where that was done before.
        show: write samples, report and TensorBoard's files.

    Raises:
        UserError: for whatever is wrong with the recipe, the corpus, the budget or the folder.
    """
    started = time.monotonic() if started is None else started
    parallel = Parallel(recipe.training.device, recipe.training.shard)
    try:
        if plan is None:
            plan, store = make_plan(recipe, started=started, memory=memory, parallel=parallel, quiet=quiet)
        else:
            process.keep_freed_memory()
            store = open_store(recipe, parallel, progress=not quiet)
        run = Run.create(out) if parallel.main else None
        run = run or Run(Path())
        run.folder = Path(parallel.share(str(run.folder)))
        try:
            if parallel.main:
                run.lock()
                run.write_json("plan.json", plan)
                run.write_json("environment.json", describe(plan["machine"], parallel.world_size))
                if recipe.start is not None:
                    run.write_json("lineage.json", lineage(recipe.start))
                # Last, since it is what makes the folder a run: one that was killed before this never was one.
                run.write_recipe(recipe)
                if announce:
                    announce(plan, run.folder)
            trainer = assemble(recipe, plan, store, run, parallel, started=started, quiet=quiet, show=show)
            if recipe.start is not None:
                inherit(trainer, recipe.start)
            return _train(trainer)
        finally:
            run.close()
    finally:
        parallel.close()


def resume(
    folder: str | Path,
    *,
    quiet: bool = False,
    announce: Callable[[dict[str, Any], Path], None] | None = None,
    show: bool = True,
) -> Result:
    """Continue an interrupted run from its newest sound checkpoint, bit for bit on a CPU.

    Raises:
        RunError: no run, no usable checkpoint, another process at work, or a corpus that has changed.
    """
    run = Run.open(folder)
    recipe = run.recipe
    parallel = Parallel(recipe.training.device, recipe.training.shard)
    try:
        if parallel.main:
            run.lock()
        if any(True for _ in run.metrics("finish")):
            raise RunError(
                "the run is finished: there is nothing left to resume",
                where=str(folder),
                fix=f"Start a new run, or write the report again with `thalweg report {folder}`.",
            )
        plan = run.plan
        process.keep_freed_memory()
        store = open_store(recipe, parallel, progress=not quiet)
        if store.manifest["content"] != plan["data"]["content_hash"]:
            raise RunError(
                "the corpus has changed since the run began",
                where=recipe.data.corpus,
                fix="Put the old files back, or start a new run.",
            )
        checkpoints = CheckpointFolder(run.checkpoints, keep=recipe.training.keep)
        step, complaints = parallel.share(checkpoints.newest() if parallel.main else None)
        for complaint in complaints:
            warnings.warn(complaint, stacklevel=2)
        trainer = assemble(recipe, plan, store, run, parallel, started=time.monotonic(), quiet=quiet, show=show)
        state = load_checkpoint(trainer, checkpoints.path(step))
        if parallel.main:
            run.rewind_metrics(state["metrics_bytes"])
            run.append({"event": "resume", "step": step, "seconds": round(trainer.clock.seconds, 4)})
            if announce:
                announce(plan, run.folder)
        return _train(trainer)
    finally:
        run.close()
        parallel.close()


def _train(trainer: Trainer) -> Result:
    """Run the loop; whatever happens, the terminal and the signal handlers are given back."""
    try:
        trainer.train()
    except TrainingError as error:
        if trainer.parallel.main:
            trainer.run.append({"event": "stopped", "step": trainer.clock.step, "reason": error.what})
            if any(isinstance(part, Closing) for part in trainer.callbacks):
                write_report(trainer.run.folder)
        raise
    finally:
        for part in trainer.callbacks:
            if hasattr(part, "release"):
                part.release()
    held_out: dict[str, Any] = next((part.last for part in trainer.callbacks if hasattr(part, "evaluated_at")), {})
    clock = trainer.clock
    done = clock.last
    return Result(
        folder=trainer.run.folder,
        step=clock.step,
        tokens=clock.tokens,
        seconds=clock.seconds,
        bits_per_byte=held_out.get("held_out_bits_per_byte") if done else None,
        low=held_out.get("low") if done else None,
        high=held_out.get("high") if done else None,
        signal=None if done else trainer.stop_requested,
    )
