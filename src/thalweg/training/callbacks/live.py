"""The live line: where the run stands, how fast it goes, when it ends and where the loss will land."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from thalweg.laws.power_curve import forecast

if TYPE_CHECKING:
    from thalweg.training.trainer import Trainer

PLAIN_INTERVAL = 15.0  # seconds between lines where there is no terminal to draw on
FORECAST_INTERVAL = 2.0


class LiveLine:
    """Draws on standard error: a progress bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, bytes_per_token: float, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.bits_per_nat = 1.4426950408889634 / bytes_per_token
        self.progress: Progress | None = None
        self._steps: list[int] = []
        self._losses: list[float] = []
        self.forecast_text = ""
        self._forecast_at = self._printed_at = 0.0
        self._held_out = ""

    def setup(self, trainer: Trainer) -> None:
        for line in trainer.run.metrics("step"):
            self._note(line)
        self._printed_at = time.monotonic()
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("{task.fields[text]}"),
                console=self.console,
                refresh_per_second=4,
            )
            self.task = self.progress.add_task("train", total=1.0, text="")
            self.progress.start()

    def _note(self, line: dict[str, Any]) -> None:
        self._steps.append(line["step"])
        self._losses.append(line["loss"])

    def step(self, trainer: Trainer) -> None:
        self._note(trainer.metrics)
        now = time.monotonic()
        if self.progress is not None:
            self._forecast(trainer, now)
            self.progress.update(self.task, completed=trainer.clock.progress, text=self._text(trainer))
        elif now - self._printed_at >= PLAIN_INTERVAL:
            self._printed_at = now
            self._forecast(trainer, now)
            print(f"{trainer.clock.progress:4.0%}  {self._text(trainer)}", file=sys.stderr, flush=True)

    def _forecast(self, trainer: Trainer, now: float) -> None:
        if now - self._forecast_at < FORECAST_INTERVAL:
            return
        self._forecast_at = now
        final = self._steps[-1] / max(trainer.clock.progress, 1e-9)
        found = forecast(self._steps, self._losses, final_step=max(final, self._steps[-1]))
        if found is not None:
            low, high = found.low * self.bits_per_nat, found.high * self.bits_per_nat
            self.forecast_text = f"  ends near {found.value * self.bits_per_nat:.3f} ({low:.2f} to {high:.2f})"

    def _text(self, trainer: Trainer) -> str:
        line = trainer.metrics
        left = trainer.clock.remaining_seconds(trainer.step_tokens, trainer.step_flops)
        return (
            f"step {line['step']}  loss {line['loss']:.3f}  {line['bits_per_byte']:.3f} bits/byte  "
            f"{line['tokens_per_second']:,.0f} tok/s  {clock_time(left)} left{self.forecast_text}{self._held_out}"
        )

    def skipped(self, trainer: Trainer) -> None:
        self.console.print(f"step {trainer.clock.step} skipped: non-finite loss or gradient", style="yellow")

    def evaluation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self._held_out = f"  held out {metrics['held_out_bits_per_byte']:.3f}"

    def finish(self, trainer: Trainer) -> None:
        self.release()

    def release(self) -> None:
        """Take the bar off the terminal; harmless when there is none."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def clock_time(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
