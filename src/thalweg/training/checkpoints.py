"""Checkpoints that survive anything: written beside, synced, renamed; checked by hash when read; never unpickled.

A checkpoint is a Hugging Face model folder (config, safetensors, tokenizer) with three more files:

    state.json + state.safetensors   optimizer, schedule, callbacks, clock and random state
    manifest.json                    size and SHA-256 of every other file; written last

Under FSDP2 the optimizer's tensors are in `optimizer/`, written by torch.distributed.checkpoint in its safetensors
layout, so that any number of ranks can read them back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from thalweg.errors import RunError, disk_is_full

LATEST, STABLE = "latest", "stable"  # links to a checkpoint
_TENSOR, _TUPLE, _INTEGER_KEYS = "$tensor", "$tuple", "$integer_keys"


def encode(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Turn a state dict into JSON, moving its tensors to `tensors` under the path they stood at."""
    if isinstance(value, Tensor):
        # Cloned: safetensors refuses two names for one memory, and states may share (views, aliases).
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(value, dict):
        inner = {str(key): encode(item, tensors, f"{path}/{key}") for key, item in value.items()}
        if value and all(isinstance(key, int) for key in value):
            return {_INTEGER_KEYS: inner}
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"state at {path or '/'} has keys that are neither all text nor all integers")
        return inner
    if isinstance(value, list | tuple):
        items = [encode(item, tensors, f"{path}/{index}") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"state at {path or '/'} is a {type(value).__name__}; keep tensors and plain values in state dicts")


def decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_TENSOR}:
        return tensors[value[_TENSOR]]
    if set(value) == {_TUPLE}:
        return tuple(decode(item, tensors) for item in value[_TUPLE])
    if set(value) == {_INTEGER_KEYS}:
        return {int(key): decode(item, tensors) for key, item in value[_INTEGER_KEYS].items()}
    return {key: decode(item, tensors) for key, item in value.items()}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class CheckpointFolder:
    """The `checkpoints/` folder of a run.

    Writing goes: `begin(step)` gives an empty folder to fill, `write_state` adds the state, `commit` publishes it.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps that have a published checkpoint, oldest first."""
        names = (path.name for path in self.folder.glob("step-*") if path.is_dir())
        return sorted(int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit())

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def begin(self, step: int) -> Path:
        """An empty working folder for the checkpoint of `step`; leftovers of dead writers are removed."""
        self.discard_unfinished()
        working = self.folder / f".step-{step:08d}.tmp"
        working.mkdir(parents=True)
        return working

    def discard_unfinished(self) -> None:
        """Remove working folders that were never published."""
        for leftover in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def commit(self, working: Path, step: int) -> Path:
        """Publish a filled working folder: manifest, sync, rename, move `latest`, remove the oldest."""
        manifest = {
            path.relative_to(working).as_posix(): {"bytes": path.stat().st_size, "sha256": _hash(path)}
            for path in _files(working)
        }
        (working / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in [*_files(working), working / "manifest.json", working]:
            _sync(path)
        final = self.path(step)
        if final.exists():
            shutil.rmtree(final)
        os.rename(working, final)
        self._point_latest(final)
        stable = self.stable()
        for old in self.steps()[: -self.keep]:
            if old != stable:
                shutil.rmtree(self.path(old), ignore_errors=True)
        return final

    def stable(self) -> int | None:
        """The step of the checkpoint at the end of the trunk, which is never removed; None where there is none."""
        target = self.folder / STABLE
        name = os.readlink(target) if target.is_symlink() else ""
        return int(name.removeprefix("step-")) if target.is_dir() else None

    def mark_stable(self, step: int) -> None:
        """Keep a published checkpoint for good, as that of the end of the trunk."""
        self._point(STABLE, self.path(step))

    def _point_latest(self, target: Path) -> None:
        self._point(LATEST, target)

    def _point(self, name: str, target: Path) -> None:
        link = self.folder / f".{name}.{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        os.replace(link, self.folder / name)
        _sync(self.folder)

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint, or None when every file is as it was written."""
        folder = self.path(step)
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            for name, entry in manifest.items():
                if (folder / name).stat().st_size != entry["bytes"]:
                    return f"{name} has the wrong size"
                if _hash(folder / name) != entry["sha256"]:
                    return f"{name} has changed since it was written"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def newest(self) -> tuple[int, list[str]]:
        """The step of the newest sound checkpoint, and what is wrong with newer ones; `RunError` if there is none."""
        complaints: list[str] = []
        for step in reversed(self.steps()):
            problem = self.damage(step)
            if problem is None:
                return step, complaints
            complaints.append(f"checkpoint of step {step} is damaged ({problem}); using the one before it")
        raise RunError(
            "the run has no usable checkpoint" + (": " + "; ".join(complaints) if complaints else ""),
            where=str(self.folder),
            fix="Start the run again: `thalweg train RUN/recipe.toml`.",
        )


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a nested state dict as state.json and state.safetensors."""
    tensors: dict[str, Tensor] = {}
    tree = encode(state, tensors)
    (folder / "state.json").write_text(json.dumps(tree), encoding="utf-8")
    save_file(tensors, folder / "state.safetensors")


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `write_state` wrote."""
    try:
        with safe_open(folder / "state.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return decode(json.loads((folder / "state.json").read_text(encoding="utf-8")), tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(f"the checkpoint's state cannot be read: {error}", where=str(folder)) from None


def disk_error(error: Exception, folder: Path) -> RunError | None:
    """A full disk (or quota) as a `RunError`; None for other errors."""
    if not disk_is_full(error):
        return None
    return RunError(
        "the disk is full: the new checkpoint was not written, the one before it is intact",
        where=str(folder),
        fix="Free some space, then continue with `thalweg train --resume RUN`.",
    )


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's random generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
