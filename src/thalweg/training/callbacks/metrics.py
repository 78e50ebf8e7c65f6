"""Every step's numbers into metrics.jsonl, and into TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import math
import time
from typing import TYPE_CHECKING, Any

import torch

from thalweg.training import process

if TYPE_CHECKING:
    from thalweg.training.trainer import Trainer


class MetricsLog:
    """Appends one line a step.

    Args:
        bytes_per_token: of the training split; turns nats a token into bits a byte.
        peak_flops: measured matrix-product FLOP/s of one rank in the run's precision, for the utilisation.
    """

    def __init__(self, bytes_per_token: float, peak_flops: float) -> None:
        self.bytes_per_token, self.peak_flops = bytes_per_token, peak_flops
        self._last = time.monotonic()
        self._cost = (0, 0.0)

    def setup(self, trainer: Trainer) -> None:
        self._last = time.monotonic()

    def batch(self, trainer: Trainer, batch: dict[str, torch.Tensor]) -> None:
        """Note what this step costs: by the time its line is written, a callback may have chosen the next one's."""
        self._cost = (trainer.step_tokens, trainer.step_flops)

    def step(self, trainer: Trainer) -> None:
        """Write the step's line; other callbacks have added their numbers to `trainer.metrics` by now."""
        self._write(trainer, "step")

    def skipped(self, trainer: Trainer) -> None:
        trainer.metrics = {"reason": "non-finite loss or gradient", **trainer.metrics}
        self._write(trainer, "skip")

    def _write(self, trainer: Trainer, event: str) -> None:
        clock, metrics = trainer.clock, trainer.metrics
        now = time.monotonic()
        tokens_per_second, flops_per_second = (cost / max(now - self._last, 1e-9) for cost in self._cost)
        self._last = now
        line: dict[str, Any] = {
            "event": event,
            "step": clock.step,
            "tokens": clock.tokens,
            "seconds": round(clock.seconds, 4),
            "flops": clock.flops,
            "progress": clock.progress,
            **metrics,
        }
        if "loss" in metrics:
            line["bits_per_byte"] = metrics["loss"] / math.log(2) / self.bytes_per_token
        line |= {
            "param_norm": _norm(trainer.parameters),
            "tokens_per_second": round(tokens_per_second, 2),
            "step_seconds": clock.last_duration,
            "mfu": round(flops_per_second / (self.peak_flops * trainer.world_size), 4),
            "peak_memory": process.peak_memory(trainer.parallel.device),
        }
        trainer.metrics = line
        if trainer.parallel.main:
            trainer.run.append(line)


@torch.no_grad()
def _norm(parameters: list[torch.nn.Parameter]) -> float:
    norm = torch.nn.utils.get_total_norm(parameters, foreach=True)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


class TensorBoard:
    """Writes every step's numbers as TensorBoard scalars under `RUN/tensorboard`."""

    @staticmethod
    def installed() -> bool:
        return importlib.util.find_spec("tensorboard") is not None

    def __init__(self) -> None:
        self._writer: Any = None

    def setup(self, trainer: Trainer) -> None:
        if trainer.parallel.main:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(trainer.run.folder / "tensorboard"), purge_step=trainer.clock.step + 1)

    def step(self, trainer: Trainer) -> None:
        self._scalars(trainer.metrics, trainer.clock.step)

    def evaluation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self._scalars(metrics, trainer.clock.step)

    def finish(self, trainer: Trainer) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _scalars(self, metrics: dict[str, Any], step: int) -> None:
        if self._writer is None:
            return
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, step)
