"""The live line: where the run stands, how fast it goes, when it ends and where the loss will land."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from thalweg.laws import annealing_live, power_curve
from thalweg.training.planned import is_closed_form, planned_factors

if TYPE_CHECKING:
    from thalweg.training.trainer import Trainer

PLAIN_INTERVAL = 15.0  # seconds between lines where there is no terminal to draw on
FORECAST_INTERVAL = 2.0
FORECAST_SHARE = 0.005  # of the time, at most: in very long runs a forecast takes longer, and is made less often
RATE_POINTS = 200  # at which the schedule is asked for its future
MOST_STEPS = 1_000_000  # beyond, the power curve is all that there is time for


class LiveLine:
    """Draws on standard error: a progress bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, bytes_per_token: float, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.bits_per_nat = 1.4426950408889634 / bytes_per_token
        self.progress: Progress | None = None
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._rates: list[float] = []
        self.forecast_text = ""
        self._forecast_due = self._printed_at = 0.0
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
        self._rates.append(line["lr"])

    def step(self, trainer: Trainer) -> None:
        self._note(trainer.metrics)
        if "warning" in trainer.metrics:
            self.console.print(f"step {trainer.clock.step}: {trainer.metrics['warning']}", style="yellow", markup=False)
        now = time.monotonic()
        if self.progress is not None:
            self._forecast(trainer, now)
            self.progress.update(self.task, completed=trainer.clock.progress, text=self._text(trainer))
        elif now - self._printed_at >= PLAIN_INTERVAL:
            self._printed_at = now
            self._forecast(trainer, now)
            print(f"{trainer.clock.progress:4.0%}  {self._text(trainer)}", file=sys.stderr, flush=True)

    def _forecast(self, trainer: Trainer, now: float) -> None:
        if now < self._forecast_due:
            return
        final = max(round(self._steps[-1] / max(trainer.clock.progress, 1e-9)), self._steps[-1])
        rates = self._planned(trainer, final)
        found = None if rates is None else annealing_live.forecast(self._steps, self._losses, rates)
        found = found or power_curve.forecast(self._steps, self._losses, final_step=final)
        self._forecast_due = now + max(FORECAST_INTERVAL, (time.monotonic() - now) / FORECAST_SHARE)
        if found is not None:
            low, high = found.low * self.bits_per_nat, found.high * self.bits_per_nat
            self.forecast_text = f"  ends near {found.value * self.bits_per_nat:.3f} ({low:.2f} to {high:.2f})"

    def _planned(self, trainer: Trainer, final: int) -> np.ndarray | None:
        """The rates of all steps of the run, past and to come; None where nobody knows them yet.

        A run that continues another one has walked before, which the annealing law would have to know of.
        """
        continues = getattr(trainer.recipe, "start", None) is not None
        if continues or final > MOST_STEPS or not is_closed_form(trainer.schedule):
            return None
        seen, clock = self._steps[-1], trainer.clock
        past = np.interp(np.arange(1, seen + 1), self._steps, self._rates)
        if final <= seen:
            return past
        costs = (trainer.step_tokens, clock.step_seconds, trainer.step_flops)
        factors = planned_factors(trainer.schedule, seen, final, costs, RATE_POINTS)
        return np.concatenate([past, trainer.plan["peak_lr"] * trainer.lr_scale * factors])

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
