"""The run folder: everything that is known about a run, as plain files.

    recipe.toml  plan.json  environment.json  metrics.jsonl  samples.json  checkpoints/  report.html

One process at a time may write: the lock is the kernel's (`flock`), so a crash of its holder releases it.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thalweg.errors import RunError
from thalweg.recipe import Recipe


def write_text(path: Path, text: str) -> None:
    """Replace a file's content so that a reader sees the old or the new, never a part.

    It is written beside the target (UTF-8, plain line ends), synced, then renamed. Each writer has a file of its own:
    two at once, in two processes or two threads, leave the text of one of them whole.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; `RunError` when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError("the run has no such file", where=str(path), fix="Is this a run folder?") from None
    except (OSError, ValueError) as error:
        raise RunError(f"the file cannot be read: {error}", where=str(path)) from None


def plain(value: Any) -> Any:
    """As JSON can hold it: it has no word for numbers that are not finite, and they become null."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def output_folder(path: str | Path) -> Path:
    """A folder for results, made before the work whose results would be lost without it.

    Raises:
        RunError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the output folder: {error.strerror}", where=str(folder)) from None
    return folder


class Run:
    """A run's folder. Make one with `Run.create` (new) or `Run.open` (existing)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None
        self._metrics: Any = None

    @classmethod
    def create(cls, folder: str | Path | None = None) -> Run:
        """Make a new folder (`runs/<date>-<time>` when none is named); an occupied one is a `RunError`."""
        if folder is None:
            stem = time.strftime("%Y%m%d-%H%M%S")
            names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
            path = next(p for name in names if not (p := Path("runs") / name).exists())
        else:
            path = Path(folder)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                "the output folder is not empty",
                where=str(path),
                fix=f"Choose another with --out, or continue it with `thalweg train --resume {path}`.",
            )
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the run folder: {error.strerror}", where=str(path)) from None
        return cls(path)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open an existing run folder."""
        path = Path(folder)
        if not (path / "recipe.toml").is_file():
            raise RunError(
                "this is no run folder: it has no recipe.toml",
                where=str(path),
                fix="Give a folder that `thalweg train` made, such as runs/20260101-120000.",
            )
        return cls(path)

    # -- the lock -----------------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Take the run for this process; `RunError` when another process has it."""
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(handle, 64).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise RunError(
                f"another process (pid {owner}) is working on this run",
                where=str(self.folder),
                fix="Wait for it, or stop it first.",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._lock = handle

    def close(self) -> None:
        """Close the metrics file and release the lock."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- the files ----------------------------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        return Recipe.read(self.folder / "recipe.toml")

    @property
    def plan(self) -> dict[str, Any]:
        return read_json(self.folder / "plan.json")

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def write_json(self, name: str, value: Any) -> None:
        write_text(self.folder / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_recipe(self, recipe: Recipe) -> None:
        write_text(self.folder / "recipe.toml", recipe.toml())

    # -- metrics ------------------------------------------------------------------------------------------------

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def append(self, event: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl, as `plain` makes it, and hand it to the operating system at once."""
        if self._metrics is None:
            self._metrics = self.metrics_path.open("a", encoding="utf-8")
        self._metrics.write(json.dumps(plain(event), allow_nan=False) + "\n")
        self._metrics.flush()

    def metrics(self, event: str | None = None) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl, of one kind or all; a torn last line is left out."""
        try:
            lines = self.metrics_path.open(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        with lines:
            for line in lines:
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict) and event in (None, value.get("event")):
                    yield value

    def sync_metrics(self) -> int:
        """Force metrics.jsonl to disk; returns its size in bytes."""
        if self._metrics is None:
            return self.metrics_path.stat().st_size if self.metrics_path.exists() else 0
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        return self._metrics.tell()

    def rewind_metrics(self, size: int) -> None:
        """Drop what was written after the file had `size` bytes, so that a resumed run leaves no line twice."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self.metrics_path.exists() and self.metrics_path.stat().st_size > size:
            os.truncate(self.metrics_path, size)
