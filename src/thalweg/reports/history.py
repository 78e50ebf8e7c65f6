"""What metrics.jsonl says, read once from the first line to the last, in memory that does not grow with the run.

A run may have been killed in the middle of a line, may have diverged to NaN, may have gone back to a checkpoint and
walked steps twice. All of that is normal here: lines that cannot be read are counted, never fatal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thalweg.reports.curves import Curve, Point, Position
from thalweg.reports.formats import clean, finite

STEP_FIELDS = ("loss", "bits_per_byte", "lr", "grad_norm", "tokens_per_second", "mfu")
MAX_MARKS = 240
MAX_EVALUATIONS = 1000


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out loss in nats a token, bits per byte and their interval."""

    at: Position
    loss: float | None
    bits_per_byte: float | None
    low: float | None
    high: float | None
    perplexity: float | None


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a step: kind is "skip", "restore" or "resume"."""

    kind: str
    at: Position
    text: str


@dataclass(slots=True)
class History:
    """Everything that a report tells about the course of a run."""

    curves: dict[str, Curve] = field(default_factory=lambda: {name: Curve() for name in STEP_FIELDS})
    evaluations: list[Evaluation] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    mark_counts: dict[str, int] = field(default_factory=dict)
    at: Position = field(default_factory=lambda: Position(0, None, None))
    steps_seen: int = 0
    steps_redone: float = 0
    nonfinite_losses: int = 0
    ended_nonfinite: bool = False
    flops: float | None = None
    peak_memory: float | None = None
    finish: dict[str, Any] | None = None
    stopped: dict[str, Any] | None = None
    unreadable_lines: int = 0
    torn: bool = False
    missing: bool = False

    def take(self, event: dict[str, Any]) -> None:
        """Take one line of metrics.jsonl."""
        kind = event.get("event")
        if kind == "step":
            self._step(event)
        elif kind == "evaluation":
            self._evaluation(event)
        elif kind in ("skip", "restore", "resume"):
            self._mark(kind, event)
        elif kind == "finish":
            self.finish = event
            self.at = self._position(event)
        elif kind == "stopped":
            self.stopped = event
            self.at = self._position(event)

    def _position(self, event: dict[str, Any]) -> Position:
        """Where an event stands; what it leaves out is as at the last step."""
        step = finite(event.get("step"))
        tokens, seconds = finite(event.get("tokens")), finite(event.get("seconds"))
        return Position(
            self.at.step if step is None else int(step),
            self.at.tokens if tokens is None else tokens,
            self.at.seconds if seconds is None else seconds,
        )

    def _step(self, event: dict[str, Any]) -> None:
        at = self._position(event)
        if self.steps_seen and at.step <= self.at.step:
            self._rewind(at.step - 1)
        self.at = at
        self.steps_seen += 1
        # A step after the finish line: the run was extended and is on its way again.
        self.finish = self.stopped = None
        for name, curve in self.curves.items():
            value = finite(event.get(name))
            if value is not None:
                curve.add(at, value)
        if "loss" in event:
            self.ended_nonfinite = finite(event["loss"]) is None
            self.nonfinite_losses += self.ended_nonfinite
        self.flops = finite(event.get("flops")) or self.flops
        memory = finite(event.get("peak_memory"))
        if memory is not None:
            self.peak_memory = max(memory, self.peak_memory or 0.0)

    def _rewind(self, step: float) -> None:
        self.steps_redone += self.at.step - step
        for curve in self.curves.values():
            curve.rewind(step)
        self.evaluations = [evaluation for evaluation in self.evaluations if evaluation.at.step <= step]

    def _evaluation(self, event: dict[str, Any]) -> None:
        numbers = {key: finite(event.get(key)) for key in event}
        loss, bits = numbers.get("held_out_loss"), numbers.get("held_out_bits_per_byte")
        at = self._position(event)
        # A resumed or extended run may evaluate the same step again: the later one counts.
        while self.evaluations and self.evaluations[-1].at.step >= at.step:
            self.evaluations.pop()
        perplexity = numbers.get("held_out_perplexity")
        self.evaluations.append(Evaluation(at, loss, bits, numbers.get("low"), numbers.get("high"), perplexity))
        if len(self.evaluations) > MAX_EVALUATIONS:
            # From the newest backwards, so that the newest stays.
            self.evaluations = self.evaluations[::-2][::-1]

    def _mark(self, kind: str, event: dict[str, Any]) -> None:
        self.mark_counts[kind] = self.mark_counts.get(kind, 0) + 1
        if kind == "resume":
            self.finish = None
        for curve in self.curves.values():
            curve.pin()
        if len(self.marks) < MAX_MARKS:
            text = clean(event.get("reason") or "")[:160]
            self.marks.append(Mark(kind, self._position(event), text))

    @property
    def final(self) -> Evaluation | None:
        """The last evaluation."""
        return self.evaluations[-1] if self.evaluations else None

    def status(self) -> tuple[str, str]:
        """One of finished, interrupted, diverged, empty; and the sentence that says why."""
        if not self.steps_seen:
            return "empty", "No training step is recorded yet."
        if self.stopped is not None:
            return "diverged", f"Training could not go on: {self.stopped.get('reason', 'no reason was recorded')}."
        if self.ended_nonfinite:
            return "diverged", f"The loss was not a finite number at the last step ({self.at.step:,.0f})."
        last = self.final
        if last is not None and last.loss is None and last.bits_per_byte is None:
            return "diverged", "The last held-out evaluation gave no finite number."
        first, end = self._ends()
        if first is not None and end is not None and end.value > 1.1 * first.value:
            return "diverged", f"The training loss ended above its start ({first.value:.3f} to {end.value:.3f})."
        if self.finish is None:
            return "interrupted", "There is no finish line: the run was stopped, or is still going."
        return "finished", "The run used its budget and finished."

    def _ends(self) -> tuple[Point | None, Point | None]:
        """The smoothed training loss at both ends; None for runs too short to judge."""
        trend = self.curves["loss"].trend()
        return (trend[0], trend[-1]) if len(trend) >= 20 else (None, None)


def read_history(path: Path) -> History:
    """Stream a metrics.jsonl. A missing file gives an empty history with `missing` set."""
    history = History()
    try:
        lines = path.open("rb")
    except OSError:
        history.missing = True
        return history
    with lines:
        unreadable_before_end = False
        line = b""
        for line in lines:
            if not line.strip():
                continue
            # Only now is it known that the bad line was not the last one.
            history.unreadable_lines += unreadable_before_end
            event = _parsed(line)
            unreadable_before_end = event is None
            if event is not None:
                history.take(event)
        if unreadable_before_end:
            history.torn = not line.endswith(b"\n")
            history.unreadable_lines += not history.torn
    return history


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None
