"""Held-out loss and bits per byte, a few times a run and at its end."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import torch

from thalweg.budget import Budget
from thalweg.models.evaluate import evaluate
from thalweg.training import process
from thalweg.training.callbacks.every import Every

if TYPE_CHECKING:
    from thalweg.training.trainer import Trainer


class HeldOut:
    """Evaluates `tokens` held-out tokens `times` times a run (or every `interval`) and once at the end.

    Under a time budget the last evaluation's duration is kept in reserve, measured from the one before.
    """

    def __init__(self, split: Any, tokens: int, times: int, interval: Budget | None, seconds: float) -> None:
        self.split, self.tokens = split, tokens
        self.every = Every(interval, times)
        self.seconds = seconds
        self.evaluated_at = -1
        self.last: dict[str, Any] = {}

    def setup(self, trainer: Trainer) -> None:
        trainer.clock.reserve["evaluation"] = self.seconds

    def step(self, trainer: Trainer) -> None:
        if self.every.due(trainer.clock) and not trainer.clock.last:
            self.run(trainer)

    def finish(self, trainer: Trainer) -> None:
        if trainer.clock.last and self.evaluated_at != trainer.clock.step:
            self.run(trainer)

    def run(self, trainer: Trainer) -> None:
        """Evaluate, write the line and tell the other callbacks."""
        began = time.monotonic()
        # Compiled blocks would be compiled again for evaluation; a few eager batches cost less.
        eager = torch.compiler.set_stance("force_eager") if trainer.plan["compile"] else contextlib.nullcontext()
        with eager, process.autocast(trainer.parallel.device, trainer.plan["precision"]):
            found = evaluate(
                trainer.model,
                self.split,
                context=trainer.plan["context"],
                batch_size=trainer.plan["micro_batch"],
                max_tokens=self.tokens,
                token_losses=trainer.module,
            )
        clock = trainer.clock
        self.last = {
            "event": "evaluation",
            "step": clock.step,
            "tokens": clock.tokens,
            "seconds": round(clock.seconds, 4),
            "held_out_loss": found.loss,
            "held_out_bits_per_byte": found.bits_per_byte,
            "low": found.low,
            "high": found.high,
            "held_out_tokens": found.tokens,
        }
        if trainer.parallel.main:
            trainer.run.append(self.last)
        trainer.call("evaluation", self.last)
        self.seconds = time.monotonic() - began
        self.evaluated_at = clock.step
        clock.reserve["evaluation"] = self.seconds

    def state_dict(self) -> dict[str, Any]:
        return {
            "seen": self.every.seen,
            "seconds": self.seconds,
            "evaluated_at": self.evaluated_at,
            "last": self.last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.every.seen, self.seconds = state["seen"], state["seconds"]
        self.evaluated_at, self.last = state["evaluated_at"], state["last"]
