"""What a running comparison shows: a table of arms that fills up, how far all runs are, and the time left."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from thalweg.arena.measured import Outcome, progress_of, run_of
from thalweg.arena.unit import Unit
from thalweg.training.callbacks.live import clock_time

Place = tuple[str, str]  # workload and arm


class Board:
    """Follows a comparison on standard error: live on a terminal, a line for each finished run elsewhere.

    Args:
        places: (workload, arm) in the order of the table.
        expected: runs of each kind an arm will have: {"trials": 6, "seeds": 3}.
        quiet: show nothing.
    """

    def __init__(self, places: list[Place], expected: dict[str, int], *, quiet: bool = False) -> None:
        self.places, self.expected, self.quiet = places, expected, quiet
        self.total = len(places) * sum(expected.values())
        self._lock = threading.Lock()
        self._running: dict[str, tuple[Place, Unit]] = {}
        self._done: dict[Place, dict[str, int]] = {place: dict.fromkeys(expected, 0) for place in places}
        self._values: dict[Place, list[float]] = {place: [] for place in places}
        self._failures: dict[Place, int] = dict.fromkeys(places, 0)
        self._reused = 0
        self._began = time.monotonic()
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(get_renderable=self.table, console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Board:
        if not self.quiet and self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def submitted(self, place: Place, unit: Unit) -> None:
        """A run waits or works."""
        with self._lock:
            self._running[unit.key] = (place, unit)

    def finished(self, place: Place, kind: str, label: str, outcome: Outcome) -> None:
        """A run has ended, one way or the other."""
        run = run_of(outcome)
        with self._lock:
            self._running.pop(outcome.unit.key, None)
            self._done[place][kind] += 1
            self._reused += outcome.reused
            if run["bits_per_byte"] is None:
                self._failures[place] += 1
            elif kind == "seeds":
                self._values[place].append(run["bits_per_byte"])
            done = sum(sum(counts.values()) for counts in self._done.values())
        if not self.quiet and not self._console.is_terminal:
            said = f"{run['bits_per_byte']:.4f} bits per byte" if run["error"] is None else f"failed: {run['error']}"
            found = " (found finished)" if outcome.reused else ""
            print(f"[{done}/{self.total}] {label}: {said}{found}", file=sys.stderr, flush=True)

    def table(self) -> Any:
        """The present state, as rich draws it."""
        with self._lock:
            running = list(self._running.values())
            rows = [self._row(place, running) for place in self.places]
            done = sum(sum(counts.values()) for counts in self._done.values())
            reused = self._reused
        table = Table(box=None, pad_edge=False)
        table.add_column("arm")
        for kind in self.expected:
            table.add_column(kind, justify="right")
        table.add_column("bits per byte", justify="right")
        table.add_column("now", justify="right")
        for row in rows:
            table.add_row(*row)
        under_way = sum(progress_of(unit) for _, unit in running)
        share = (done + under_way) / max(self.total, 1)
        fresh = done - reused + under_way
        left = (self.total - done - under_way) * (time.monotonic() - self._began) / fresh if fresh > 0.05 else None
        line = Text(f"{done} of {self.total} runs" + (f", {clock_time(left)} left" if left is not None else ""))
        return Group(table, ProgressBar(total=1.0, completed=share, width=48), line)

    def _row(self, place: Place, running: list[tuple[Place, Unit]]) -> list[Any]:
        workload, arm = place
        several = len({name for name, _ in self.places}) > 1
        counts = [f"{self._done[place][kind]}/{self.expected[kind]}" for kind in self.expected]
        values = self._values[place]
        mean = f"{statistics.mean(values):.4f}" if values else ""
        now = [progress_of(unit) for where, unit in running if where == place]
        at_work = " ".join(f"{share:.0%}" for share in now if share > 0)
        failed = f" {self._failures[place]} failed" if self._failures[place] else ""
        return [Text(f"{arm}  {workload}" if several else arm), *counts, mean, f"{at_work}{failed}"]
