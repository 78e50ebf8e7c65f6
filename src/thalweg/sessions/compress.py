"""`compress`: the whole way from a trained model to a smaller one, with what it cost.

    read the model  ->  measure it  ->  step by step, block by block  ->  measure again  ->  write it, and the report

Each step sees what the one before it has left; after each it is asserted that nothing decided before was undone. What
is done is on disk block by block, so that the same call goes on after a kill. The result appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from thalweg import catalog
from thalweg.arms import Choice, parse_steps
from thalweg.data import TokenStore, WindowSampler
from thalweg.errors import RecipeError
from thalweg.models.blocks import decoder_blocks
from thalweg.models.compressed_tensors import save_compressed
from thalweg.models.compression import BlockStep, block_linears, check_kept
from thalweg.models.folder import load
from thalweg.models.walker import named_blocks, walk
from thalweg.reports import compression as report
from thalweg.runs import plain, write_text
from thalweg.sessions.compress_measures import Ruler, weights_of
from thalweg.sessions.compress_source import (
    available,
    check_finite,
    check_numbers,
    context_for,
    stored_dtype,
    texts,
)
from thalweg.sessions.compress_state import Work, check_free, working
from thalweg.sessions.evaluate import model_folder
from thalweg.sessions.size_target import Target, fitted, megabytes, weight_bytes, weight_files

EVALUATED_TOKENS = 200_000
RESULT = "result"  # folder of the result in the working folder, until it is whole

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Task:
    """One compression, and what its steps are given.

    Attributes:
        source: folder of the original.
        steps: in their order.
        tokenizer: of the model.
        store: that calibration is drawn from. inputs: the windows that were drawn, int64 [windows, T].
        seed: of the draw.
        work: what is done so far.
        said: told what is being done, and the share of it that is done.
    """

    source: Path
    steps: tuple[Choice, ...]
    tokenizer: Any
    store: TokenStore
    inputs: Tensor
    seed: int
    work: Work
    said: Report


def compress(
    model: str | Path,
    steps: str = "",
    out: str | Path = "compressed",
    *,
    calibration: str | None = None,
    target: str | None = None,
    windows: int = 128,
    context: int | None = None,
    seed: int = 0,
    tokens: int = EVALUATED_TOKENS,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Make a trained model small, recover what was lost, and measure both.

    Args:
        model: a run folder or a Hugging Face causal language model folder.
        steps: such as "wanda:sparsity=0.5+gptq:bits=4,group=128+perp:budget=200 steps".
        out: folder of the result; must not exist, or be empty.
        calibration: a corpus; the run's own when left out, or for a model folder the standard library.
        target: "0.4x" of the original's bytes on disk, "120MB", or "auto": as sparse as costs nothing.
        windows, context: calibration windows and the tokens in each (what the model holds, at most 1024).
        seed: of the draw of windows.
        tokens: held-out tokens that are evaluated, at most.
        progress: called with what is being done and the share of it that is done.

    Returns:
        What `compression.json` in the folder holds.

    Raises:
        thalweg.errors.UserError: a model, a step, a corpus, a target or a folder that cannot be used; nothing is
        half-written.
    """
    said = progress or (lambda text, share: None)
    check_free(Path(out))
    choices = _planned(steps, target is None)
    size = None if target is None else Target.parse(target)
    check_numbers(windows, tokens)
    source = model_folder(model)
    said("reading the model", 0.0)
    original, tokenizer = load(source, stored_dtype(source))
    named_blocks(original)
    check_finite(original, source)
    store, split = texts(Path(model), source, calibration)
    length = context_for(original, context)
    inputs = _drawn(store, length, windows, seed)
    if size is not None:
        choices = fitted(choices, size, original, source, inputs)
    drawn = {"corpus": calibration or "own", "windows": len(inputs), "context": length, "seed": seed}
    run = str(Path(model).resolve()) if source != Path(model) else None
    told = {"schema": 1, "model": str(model), "run": run, "target": target, "calibration": drawn}
    with working(Path(out), _job(source, choices, inputs, seed)) as work:
        task = Task(source, tuple(choices), tokenizer, store, inputs, seed, work, said)
        told = plain(told | _measured(task, original, Ruler(split, length, tokens)))
        if size is not None and (told["after"]["disk_bytes"] > (limit := size.limit(source))):
            told["stored"]["notes"].append(f"The size that was asked for, {megabytes(limit)}, is missed.")
        folder = work.folder / RESULT
        write_text(folder / "compression.json", json.dumps(told, indent=1) + "\n")
        report.write(told, folder / "report.html")
        work.publish(folder)
    return told


def _planned(text: str, needed: bool) -> list[Choice]:
    """The steps, none where none is needed; what can be known to fail before a model is read fails here."""
    choices = parse_steps(text) if text.strip() or needed else []
    for choice in choices:
        choice.build()
    quantizers = [choice.name for choice in choices if catalog.lookup(choice.name).family == "quantization"]
    if len(quantizers) > 1:
        raise RecipeError(
            f"{' and '.join(quantizers)} quantize the same weights", where=f"steps {text!r}", fix="Keep one of them."
        )
    return choices


def _measured(task: Task, original: Any, ruler: Ruler) -> dict[str, Any]:
    """Compress a model and write it; what it was before, what it is afterwards, and what the steps found."""
    task.said("measuring the model", 0.0)
    choices = ruler.choices(original)
    before = {**ruler.measured(original), **weights_of(original), "disk_bytes": weight_bytes(task.source)}
    began = time.perf_counter()
    compressed, found = _stepped(task, original)
    seconds = time.perf_counter() - began
    task.said("measuring what it has become", 0.0)
    after = {**ruler.measured(compressed, choices), **weights_of(compressed)}
    task.said("writing", 0.0)
    folder = task.work.folder / RESULT
    stored = save_compressed(compressed, task.tokenizer, folder)
    after["disk_bytes"] = weight_bytes(folder)
    return {
        "steps": [str(choice) for choice in task.steps],
        "before": before,
        "after": after,
        "ratio": after["disk_bytes"] / before["disk_bytes"],
        "found": found,
        "stored": {**stored, "notes": _stored_notes(stored)},
        "layers": _layers(compressed),
        "seconds": seconds,
    }


def _drawn(store: TokenStore, length: int, windows: int, seed: int) -> Tensor:
    """Windows of the training text [windows, length]; fewer where the corpus has fewer."""
    return WindowSampler(store.train, length, min(windows, available(store, length)), seed).batch(0)["input_ids"]


# -- the steps ----------------------------------------------------------------------------------------------------


def _stepped(task: Task, model: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The model after all steps, and what each found; steps and blocks that were done before are taken up."""
    work = task.work
    done = min(work.steps_done(), len(task.steps))
    found = [work.found(number) for number in range(1, done + 1)]
    if done:
        model = work.read_step(done, model.dtype)
    for number, choice in enumerate(task.steps[done:], done + 1):
        began = time.perf_counter()
        step = choice.build()
        share = partial(task.said, f"step {number} of {len(task.steps)}: {choice}")
        if isinstance(step, BlockStep) and step.by_blocks:
            told = _by_blocks(step, model, task.inputs, work, number, share)
        else:
            told = _whole(step, task, model, share)
        check_kept(model)
        told = plain({"step": str(choice), "seconds": time.perf_counter() - began, **told})
        work.keep_step(number, model, task.tokenizer, told)
        found.append(told)
    return model, found


def _by_blocks(
    step: BlockStep, model: Any, inputs: Tensor, work: Work, number: int, share: Callable[[float], None]
) -> dict[str, Any]:
    """A step that goes from block to block; each is written when it is done."""
    blocks = decoder_blocks(model)
    found = work.read_blocks(number, blocks)
    share(len(found) / len(blocks))
    waiting: tuple[Any, dict[str, Any]] | None = None
    for block in walk(model, inputs if step.calibrated else None, start=len(found)):
        if waiting is not None:
            found.append(_kept(work, number, *waiting))
        share(block.index / len(blocks))
        waiting = (block, step.compress_block(block))
    if waiting is not None:
        found.append(_kept(work, number, *waiting))
    return {"blocks": found}


def _kept(work: Work, number: int, block: Any, told: dict[str, Any]) -> dict[str, Any]:
    """Write a block once the walk has gone on, when the errors of its outputs are known."""
    told = plain({"name": block.name, "errors": block.errors, **told})
    work.keep_block(number, block, told)
    return told


def _whole(step: Any, task: Task, model: Any, share: Callable[[float], None]) -> dict[str, Any]:
    """A step that needs the whole model: with more windows where it wants them, and the original where it asks."""
    given: dict[str, Any] = {}
    if getattr(step, "wants_original", False):
        given["original"] = load(task.source, next(model.parameters()).dtype)[0]
    if hasattr(step, "report"):
        step.report = lambda done, total, loss: share(done / max(total, 1))
    wanted = getattr(step, "windows_wanted", None)
    inputs = task.inputs
    if wanted is not None:
        inputs = _drawn(task.store, inputs.shape[1], max(wanted, 1), task.seed + 1)
    return dict(step.compress(model, inputs, **given))


# -- what is told ------------------------------------------------------------------------------------------------


def _job(source: Path, steps: list[Choice], inputs: Tensor, seed: int) -> dict[str, Any]:
    """What decides the result; the model by size and time, since hashing gigabytes would cost more than a block."""
    paths = [source / "config.json", *weight_files(source)]
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return {
        "source": str(source.resolve()),
        "weights": hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16],
        "steps": [str(choice) for choice in steps],
        "calibration": [*inputs.shape, seed, hashlib.sha256(inputs.numpy().tobytes()).hexdigest()[:16]],
    }


def _stored_notes(stored: dict[str, Any]) -> list[str]:
    """What a reader should know of how the model is stored."""
    notes = [f"{count} layers are stored as {layout}." for layout, count in stored["formats"].items()]
    notes += [
        f"{len(names)} layers are stored as plain weights: {reason}." for reason, names in stored["plain"].items()
    ]
    if stored["largest_change"]:
        notes.append(
            f"Scales are rounded where they are stored: weights change by {stored['largest_change']:.1e} at most."
        )
    return notes


def _layers(model: Any) -> list[dict[str, Any]]:
    """Every linear of the blocks: its shape, how many weights are zero, its format, what is to be known of it."""
    rows = []
    for name, linear in block_linears(model).items():
        quantized = linear.fixed.quantized
        rows.append(
            {
                "name": name,
                "shape": list(linear.shape),
                "zeros": float((linear.weight == 0).double().mean()),
                "format": None if quantized is None else quantized.format.name,
                "notes": linear.fixed.notes,
            }
        )
    return rows
