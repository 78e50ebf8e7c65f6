"""A progress bar in bytes on stderr, for the passes over a corpus."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

_QUIET = 0.5


class Bar:
    """Shows nothing when not wanted, where stderr is no terminal, or for work that takes under half a second.

    Args:
        shown: whether to show it at all. total: bytes in one pass; None when nobody knows.
    """

    def __init__(self, shown: bool, total: int | None) -> None:
        self._shown, self._total = shown, total
        self._progress: Any = None
        self._task: Any = None
        self._phase, self._done, self._endless = "", 0, False
        self._began = time.monotonic()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def start(self, phase: str, endless: bool = False) -> None:
        """Begin a pass called `phase`; `endless` ones have no end to show."""
        self._phase, self._done, self._endless = phase, 0, endless
        if self._progress is not None:
            self._progress.reset(self._task, description=phase, total=None if endless else self._total)

    def advance(self, count: int) -> None:
        """`count` more bytes are done."""
        if not self._shown:
            return
        self._done += count
        if self._progress is None:
            if time.monotonic() - self._began < _QUIET:
                return
            self._open()
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True)
        if not console.is_terminal:
            # In a log file a bar is noise.
            self._shown = False
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(self._phase, total=None if self._endless else self._total)
        self._progress.start()
