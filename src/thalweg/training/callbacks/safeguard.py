"""When the numbers break: skip the step, go back once with a lower rate, then stop and say so.

A non-finite loss or gradient never reaches the weights (the trainer does not take the step). After `patience`
skipped steps in a row the weights themselves are taken to be spoilt: the run goes back to its last checkpoint with
half the rate. If that happens a second time it ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thalweg.errors import RunError, TrainingError
from thalweg.training.storage import load_checkpoint

if TYPE_CHECKING:
    from thalweg.training.checkpoints import CheckpointFolder
    from thalweg.training.trainer import Trainer

PATIENCE = 3
RATE_AFTER_RESTORE = 0.5


class Safeguard:
    """Counts skipped steps; restores once, then raises `TrainingError`."""

    def __init__(self, folder: CheckpointFolder) -> None:
        self.folder = folder
        self.in_a_row = 0
        self.skipped_steps = 0
        self.restores = 0

    def step(self, trainer: Trainer) -> None:
        self.in_a_row = 0

    def skipped(self, trainer: Trainer) -> None:
        self.in_a_row += 1
        self.skipped_steps += 1
        if self.in_a_row >= PATIENCE:
            self.restore(trainer)

    def restore(self, trainer: Trainer) -> None:
        """Go back to the last checkpoint with a lower rate; `TrainingError` when that was done before."""
        failed_at = trainer.clock.step
        fix = "Lower training.peak_lr, or look at the data of these steps; metrics.jsonl has every step."
        if self.restores:
            raise TrainingError(
                f"the loss or its gradient is not finite, again after going back once (step {failed_at})",
                where=str(trainer.run.folder),
                fix=fix,
            )
        try:
            step = trainer.parallel.share(self.folder.newest()[0] if trainer.parallel.main else None)
        except RunError:
            raise TrainingError(
                f"the loss or its gradient is not finite at step {failed_at}, and there is no checkpoint to go back to",
                where=str(trainer.run.folder),
                fix=fix,
            ) from None
        restores, skipped = self.restores + 1, self.skipped_steps
        spent = trainer.clock.seconds
        load_checkpoint(trainer, self.folder.path(step))
        # The steps are given back, the time they took is not.
        trainer.clock.rewound(spent)
        self.restores, self.skipped_steps, self.in_a_row = restores, skipped, 0
        trainer.lr_scale *= RATE_AFTER_RESTORE
        trainer.metrics = {
            "event": "restore",
            "step": step,
            "failed_at": failed_at,
            "lr_scale": trainer.lr_scale,
            "seconds": round(trainer.clock.seconds, 4),
        }
        if trainer.parallel.main:
            trainer.run.append(trainer.metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row, "skipped_steps": self.skipped_steps, "restores": self.restores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.in_a_row, self.skipped_steps, self.restores = (
            state["in_a_row"],
            state["skipped_steps"],
            state["restores"],
        )
