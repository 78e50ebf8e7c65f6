"""Does the best learning rate stay where it is when a model becomes wider? Losses over rates x widths, with muP and
without."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from thalweg import catalog
from thalweg.sessions.width_series import WidthSeries, loss_of, step

HELD_OUT_WINDOWS = 64
WARMUP = 0.1


def rate_transfer(
    series: WidthSeries,
    widths: Sequence[int],
    rates: Sequence[float],
    parameterisation: str,
    *,
    steps: int,
    seeds: Sequence[int] = (0,),
    tell: Callable[[str], None] = lambda line: None,
) -> np.ndarray:
    """Held-out loss in nats a byte after a linear schedule, [width, rate], mean over seeds; infinite where it diverged.

    Args:
        rates: peak rates, meant for the series' base width. parameterisation: "standard" or "mup".
        tell: is given a line a run.
    """
    losses = np.zeros((len(widths), len(rates)))
    for row, width in enumerate(widths):
        for column, rate in enumerate(rates):
            ends = [ended(series, width, parameterisation, rate, steps, seed) for seed in seeds]
            losses[row, column] = np.mean(ends)
            tell(f"{parameterisation}, width {width}, rate {rate:g}: {losses[row, column]:.4f}")
    return losses


def ended(series: WidthSeries, width: int, parameterisation: str, rate: float, steps: int, seed: int) -> float:
    """Held-out loss of one run."""
    model, optimizer = series.model(width, parameterisation, seed, rate)
    schedule = catalog.resolve("linear")(warmup=WARMUP).scheduler(optimizer, steps)
    for _, batch in zip(range(steps), series.batches(seed), strict=False):
        step(model, optimizer, batch)
        schedule.step()
    with torch.no_grad():
        loss = float(loss_of(model, series.held_out(HELD_OUT_WINDOWS)))
    return loss if math.isfinite(loss) else math.inf


def best_rate(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, bool]:
    """(the rate of the lowest loss, whether it lies inside the grid).

    Between rates the logarithm of the rate is that of the lowest point of a parabola through the best and its
    neighbours; at an end of the grid, or beside a run that diverged, it is the best rate that was tried.
    """
    best = int(np.argmin(losses))
    if best in (0, len(rates) - 1):
        return float(rates[best]), False
    near = slice(best - 1, best + 2)
    if not np.isfinite(losses[near]).all():
        return float(rates[best]), True
    curve = np.polyfit(np.log(rates[near]), losses[near], 2)
    return math.exp(-curve[1] / (2.0 * curve[0])), True
