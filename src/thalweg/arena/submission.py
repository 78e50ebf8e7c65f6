"""Units handed in: each is run, or found finished, and the board is told as it ends.

    with submitting(Local(cache_folder(), jobs), list(units.values()), rows, {"seeds": 3}) as submitter:
        outcomes = submitter.outcomes({key: (unit, row) for ...})

Who needs an outcome before the next unit can be planned takes the futures that `submit` gives.
"""

from __future__ import annotations

import platform
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from thalweg.arena.board import Board, Place
from thalweg.arena.measured import Outcome
from thalweg.arena.unit import Unit

Key = TypeVar("Key", bound=Hashable)


class Submitter:
    """Where units are handed in.

    Args:
        execution: prepared.
        board: with a row for every place that is named.
    """

    def __init__(self, execution: Any, board: Board) -> None:
        self.execution, self.board = execution, board

    def submit(self, unit: Unit, label: str, *, place: Place, kind: str = "seeds") -> Future[Outcome]:
        """Run a unit, or find it finished; `label` is what a line about it begins with.

        A run that failed is an outcome like others. An execution that was closed meanwhile leaves a cancelled future.
        """
        slots, threads = self.execution.slots, self.execution.threads
        unit = unit.on(threads, f"{slots} x {threads} on {platform.node()}, {self.execution.name}")
        outcome: Future[Outcome] = Future()
        state = unit.state()
        if state in ("finished", "stopped"):
            done = Outcome(unit, {"status": state}, reused=True)
            self.board.finished(place, kind, label, done)
            outcome.set_result(done)
            return outcome

        def told(work: Future[dict[str, Any]]) -> None:
            if work.cancelled():
                outcome.cancel()
                return
            try:
                done = Outcome(unit, work.result(), reused=False)
                self.board.finished(place, kind, label, done)
                outcome.set_result(done)
            except BaseException as error:  # who waits must hear of it: executors swallow what callbacks raise
                outcome.set_exception(error)

        self.board.submitted(place, unit)
        self.execution.submit(unit).add_done_callback(told)
        return outcome

    def outcomes(self, work: Mapping[Key, tuple[Unit, Place]], kind: str = "seeds") -> dict[Key, Outcome]:
        """All units, each on its row of the board, and what became of them, under the same keys."""
        futures = {
            key: self.submit(unit, f"{place[1]}, seed {unit.recipe.seed}", place=place, kind=kind)
            for key, (unit, place) in work.items()
        }
        return {key: future.result() for key, future in futures.items()}


@contextmanager
def submitting(
    execution: Any, units: list[Unit], rows: list[Place], expected: dict[str, int], *, quiet: bool = False
) -> Iterator[Submitter]:
    """An execution prepared for these units, under a board; closed at the end, whatever happens.

    Args:
        execution: `Local` or `OnRay`.
        units: what is likely to be handed in; the execution is divided for them.
        rows, expected, quiet: of the board, see `Board`.
    """
    try:
        execution.prepare(units)
        with Board(rows, expected, quiet=quiet) as board:
            yield Submitter(execution, board)
    finally:
        execution.close()
