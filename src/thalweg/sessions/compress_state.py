"""What a compression has done so far, on disk: so that a killed one goes on with the block that it had not finished.

The working folder stands beside the result, `<out>.partial`, and becomes it at the end:

    job.json                          what is being done; work of another job is never taken up
    step-1/                           the model after the first step as Hugging Face saves it, and what is fixed
    step-2.block-0003.safetensors     a block that the second step has done, with what is fixed about its linears
    step-2.block-0003.json            what was found there

Every file is written beside its name, synced and renamed; what is not whole does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from thalweg.cache import cache_folder
from thalweg.data.locking import locked
from thalweg.errors import ModelError, RunError, UserError, disk_is_full
from thalweg.models.compression import block_linears
from thalweg.models.folder import load, save
from thalweg.models.linears import Linear, linears_of
from thalweg.models.walker import Block
from thalweg.numerics.float_formats import format_of
from thalweg.numerics.number_formats import Quantized
from thalweg.runs import read_json, write_text

ANOTHER = "Name another output folder, or move away what is there."
OWN_NAMES = re.compile(r"job\.json|step-\d+(\.block-\d+\.(json|safetensors))?|result|\..*\.tmp")


def check_free(out: Path) -> None:
    """Raises ModelError where a result cannot be put; asked before any work is done."""
    if out.name in ("", ".."):
        raise ModelError("the result needs a folder of its own", where=str(out), fix="Name a new one, as -o small.")
    partial = _partial(out)
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
        replaceable = not (out.is_symlink() or out.is_mount())
        own = not partial.exists() or all(OWN_NAMES.fullmatch(path.name) for path in partial.iterdir())
    except OSError as error:
        raise ModelError(f"no folder can be there: {error.strerror}", where=str(out), fix=ANOTHER) from None
    if taken:
        raise ModelError("the output folder exists and is not empty", where=str(out), fix=ANOTHER)
    if not replaceable:
        raise ModelError(
            "a link or a mounted folder cannot become the result", where=str(out), fix="Name a folder inside it."
        )
    if not own:
        raise ModelError("there is a folder that no compression has made", where=str(partial), fix=ANOTHER)


@contextmanager
def working(out: Path, job: dict[str, Any]) -> Iterator[Work]:
    """The working folder of one compression, which no other process may work in; what is done in it stays.

    Args:
        out: where the result will be.
        job: what is done, as plain data; decides whether earlier work may be gone on with.

    Raises:
        ModelError: another process is at work, the working folder cannot be made, something is there that is not this
            job's, or the disk is full.
    """
    # Not in the folder, which comes and goes.
    lock = cache_folder() / "locks" / f"compress-{hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]}"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, wait=False) as free:
        if not free:
            raise ModelError(
                "another compression is at work on this result",
                where=str(_partial(out)),
                fix="Wait for it, or name another output.",
            )
        work = Work(out, job)
        with work.kept():
            yield work


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


class Work:
    """The working folder of one compression.

    Args:
        out: where the result will be.
        job: what is done, as plain data; decides whether earlier work may be gone on with.

    Raises:
        ModelError: the working folder cannot be made, or something is there that is not this job's.
    """

    def __init__(self, out: Path, job: dict[str, Any]) -> None:
        self.out, self.folder = out, _partial(out)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.iterdir()):
                self._check_own(job)
            write_text(self.folder / "job.json", json.dumps(job, indent=1) + "\n")
        except OSError as error:
            with suppress(OSError):  # stays where there is something in it
                self.folder.rmdir()
            raise ModelError(
                f"the folder cannot be made: {error.strerror}", where=str(self.folder), fix=ANOTHER
            ) from None

    def _check_own(self, job: dict[str, Any]) -> None:
        """Raises ModelError where another job has done something: it may have taken hours."""
        with self._sound():
            other = dict(read_json(self.folder / "job.json"))
            steps = "+".join(map(str, other["steps"]))
        if other != job and self._begun():
            differs = steps if other["steps"] != job["steps"] else f"{steps}, of another model, text or seed"
            raise ModelError(
                f"there is unfinished work of another compression ({differs})",
                where=str(self.folder),
                fix="Finish it with the command that began it, delete the folder, or name another output.",
            )

    def _begun(self) -> bool:
        return any(self.folder.glob("step-*"))

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """What cannot be read of finished work, as an error that says what to do."""
        try:
            yield
        except (SafetensorError, OSError, UserError, ValueError, KeyError, TypeError, RuntimeError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"the unfinished work is damaged: {said}",
                where=str(self.folder),
                fix="If it cannot be repaired, delete that folder: the same command then begins anew.",
            ) from None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Where the work inside ends early, what is done stays; a folder in which nothing is done does not.

        Raises:
            ModelError: the disk is full.
        """
        try:
            yield
        except BaseException as error:
            if not self._begun():
                shutil.rmtree(self.folder, ignore_errors=True)
            if not isinstance(error, Exception) or isinstance(error, UserError) or not disk_is_full(error):
                raise
            raise ModelError(
                "the disk is full",
                where=str(self.folder),
                fix="Free some space; the same command then goes on from the last block that was finished.",
            ) from None

    # -- whole steps ----------------------------------------------------------------------------------------------

    def steps_done(self) -> int:
        """How many steps were finished before."""
        done = [int(path.parent.name.removeprefix("step-")) for path in self.folder.glob("step-*/found.json")]
        return max(done, default=0)

    def keep_step(self, number: int, model: Any, tokenizer: Any, found: dict[str, Any]) -> None:
        """Write the model after a step (1-based); earlier work is not needed any more."""
        folder = self.folder / f"step-{number}"
        save(model, tokenizer, folder)
        linears = block_linears(model)
        fixed = {key: value for name, linear in linears.items() for key, value in _packed(name, linear).items()}
        _save_tensors(fixed, folder / "fixed.safetensors")
        write_text(folder / "formats.json", json.dumps(_formats(linears)))
        write_text(folder / "found.json", json.dumps(found))
        for path in self.folder.glob(f"step-{number}.block-*"):
            path.unlink()
        if number > 1:
            # What it found stays: the report tells of every step.
            for path in (self.folder / f"step-{number - 1}").iterdir():
                if path.name != "found.json":
                    path.unlink()

    def read_step(self, number: int, dtype: torch.dtype) -> Any:
        """The model after a step."""
        folder = self.folder / f"step-{number}"
        with self._sound():
            model = load(folder, dtype)[0]
            _restore(block_linears(model), load_file(folder / "fixed.safetensors"), read_json(folder / "formats.json"))
        return model

    def found(self, number: int) -> dict[str, Any]:
        with self._sound():
            found = dict(read_json(self.folder / f"step-{number}" / "found.json"))
            return {**found, "step": found["step"], "seconds": found["seconds"]}

    # -- blocks of a step -----------------------------------------------------------------------------------------

    def keep_block(self, number: int, block: Block, found: dict[str, Any]) -> None:
        """Write what a step has made of a block."""
        weights, said = self._block_files(number, block.index)
        tensors = {f"weights.{name}": value.contiguous() for name, value in block.module.state_dict().items()}
        for name, linear in block.linears.items():
            tensors |= {f"fixed.{key}": value for key, value in _packed(name, linear).items()}
        _save_tensors(tensors, weights)
        write_text(said, json.dumps({"found": found, "formats": _formats(block.linears)}))

    def read_blocks(self, number: int, blocks: list[nn.Module]) -> list[dict[str, Any]]:
        """Put the blocks that a step has done before into the model; what was found in each, in their order."""
        found: list[dict[str, Any]] = []
        for index, module in enumerate(blocks):
            weights, path = self._block_files(number, index)
            if not path.is_file():
                break
            try:
                tensors, said = load_file(weights), read_json(path)
                told, formats = dict(said["found"]), dict(said["formats"])
            except (SafetensorError, OSError, RunError, ValueError, KeyError, TypeError):
                break  # damaged: this block is done again
            with self._sound():
                module.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k[0] == "w"})
                own = {k.removeprefix("fixed."): v for k, v in tensors.items() if k[0] == "f"}
                _restore(linears_of(module), own, formats)
            found.append(told)
        return found

    def _block_files(self, number: int, index: int) -> tuple[Path, Path]:
        stem = f"step-{number}.block-{index:04d}"
        return self.folder / f"{stem}.safetensors", self.folder / f"{stem}.json"

    # -- the end --------------------------------------------------------------------------------------------------

    def publish(self, folder: Path) -> None:
        """Make a folder inside the working folder the result, and throw the rest away."""
        if self.out.is_dir():
            self.out.rmdir()
        os.replace(folder, self.out)
        shutil.rmtree(self.folder, ignore_errors=True)


def _packed(name: str, linear: Linear) -> dict[str, Tensor]:
    """What is fixed about a linear, as tensors."""
    fixed = linear.fixed
    tensors = {} if fixed.mask is None else {f"{name}:mask": fixed.mask}
    if fixed.quantized is not None:
        for field in fields(fixed.quantized):
            value = getattr(fixed.quantized, field.name)
            if isinstance(value, Tensor):
                tensors[f"{name}:{field.name}"] = value
    return {key: value.contiguous() for key, value in tensors.items()}


def _formats(linears: dict[str, Linear]) -> dict[str, Any]:
    """Formats and notes of linears, as plain data."""
    said: dict[str, Any] = {}
    for name, linear in linears.items():
        quantized = linear.fixed.quantized
        form = None if quantized is None else quantized.format
        spelled = None if form is None else [_option(form.name), form.bits, form.symmetric]
        said[name] = {"notes": linear.fixed.notes, "format": spelled}
    return said


def _restore(linears: dict[str, Linear], tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    for name, linear in linears.items():
        own = {key.rpartition(":")[2]: value for key, value in tensors.items() if key.rpartition(":")[0] == name}
        linear.fixed.notes = said[name]["notes"]
        linear.fixed.mask = own.pop("mask", None)
        if said[name]["format"] is not None:
            absent: dict[str, Any] = {field.name: None for field in fields(Quantized)}
            linear.fixed.quantized = Quantized(**{**absent, **own, "format": format_of(*said[name]["format"])})


def _option(name: str) -> str:
    """A format's name as `format_of` takes it: integers are told apart by their bits."""
    return "int" if re.fullmatch(r"u?int\d", name) else name


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Beside the name, then renamed: a reader finds all of it or nothing."""
    beside = path.with_name(f".{path.name}.tmp")
    # Copies, since tensors that share memory cannot be stored under two names.
    save_file({key: value.detach().clone() for key, value in tensors.items()}, beside)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)
