"""Checkpoints every so often, at the end, and when a signal asks the run to stop."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

from thalweg.budget import Budget
from thalweg.training.callbacks.every import Every
from thalweg.training.storage import save_checkpoint

if TYPE_CHECKING:
    from thalweg.training.checkpoints import CheckpointFolder
    from thalweg.training.trainer import Trainer

ROUNDING = 1e-9
DEFAULT_INTERVAL = Budget(60.0, "seconds")


class Checkpointing:
    """Saves every `interval`, at the end of the schedule's trunk and at the end of the run.

    The one at the end of the trunk is kept for good. The time of a save is kept in reserve.
    """

    def __init__(self, folder: CheckpointFolder, tokenizer: Any, interval: Budget | None, seconds: float) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.every = Every(interval or DEFAULT_INTERVAL)
        self.seconds = seconds
        self.saved_at: int | None = None
        self._progress = 0.0

    def setup(self, trainer: Trainer) -> None:
        self._progress = trainer.clock.progress
        trainer.clock.reserve["checkpoint"] = self.seconds

    def step(self, trainer: Trainer) -> None:
        leaving = self._leaving_trunk(trainer)
        # Seconds differ from rank to rank and saving is a joint work, so rank 0 decides.
        if trainer.parallel.share(self.every.due(trainer.clock) or leaving):
            self.save(trainer)
        if leaving and trainer.parallel.main:
            self.folder.mark_stable(trainer.clock.step)

    def _leaving_trunk(self, trainer: Trainer) -> bool:
        """Whether the step just taken was the first to reach the end of a trunk after which something decays."""
        end, now = getattr(trainer.schedule, "trunk_end", None), trainer.clock.progress
        before, self._progress = self._progress, now
        # Progress is rounded: the last step of the trunk may be a hair short of its end.
        return end is not None and 0.0 < end < 1.0 and before < end - ROUNDING <= now and not trainer.clock.last

    def finish(self, trainer: Trainer) -> None:
        if self.saved_at != trainer.clock.step:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        began = time.monotonic()
        save_checkpoint(trainer, self.folder, self.tokenizer)
        self.saved_at = trainer.clock.step
        self.seconds = time.monotonic() - began
        trainer.clock.reserve["checkpoint"] = self.seconds

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.every.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.every.seen = state["seen"]


class Interruption:
    """SIGINT and SIGTERM let the step finish and then end the run; a second signal ends it at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def setup(self, trainer: Trainer) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:
                return  # not the main thread (a notebook's worker, a server): the caller handles signals

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number

    def step(self, trainer: Trainer) -> None:
        # The ranks stop together, whichever of them heard the signal.
        if trainer.parallel.any(self.received is not None):
            trainer.stop_requested = self.received or signal.SIGTERM

    skipped = step

    def finish(self, trainer: Trainer) -> None:
        self.release()

    def release(self) -> None:
        """Put the signal handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
