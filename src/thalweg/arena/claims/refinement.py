"""Is a schedule refined from gradient norms as good as linear decay with a warm-up that was tuned?

Two runs belong to refinement, so it is no race of arms. A small character model with Adam starts without any warm-up
at rates where that matters. Linear decay is tuned over its rate and its warm-up, the refined schedule over its rate
alone; its norms (l1, raw) come from the best run of linear decay without a warm-up. Tuned on one seed, compared on
others.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thalweg import catalog
from thalweg.arena.claims import small_text
from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.small_text import BATCH, CONTEXT
from thalweg.arena.statistics import paired
from thalweg.data import WindowSampler
from thalweg.numerics.curvature import norm

STEPS, SEEDS = 500, 5
PEAKS = (0.005, 0.01, 0.02, 0.04)
WARMUPS = (0.0, 0.05, 0.2)
# What the arena calls negligible.
MARGIN = 0.002


def refinement(seed: int = 0, steps: int = STEPS, seeds: int = SEEDS) -> Finding:
    """Held-out nats a character of both after tuning, and their paired difference over seeds."""
    text, held = small_text.code()
    linear = catalog.resolve("linear")
    norms: dict[float, list[float]] = {peak: [] for peak in PEAKS}

    def loss(schedule: Any, peak: float, seed: int, record: list[float] | None = None) -> float:
        def look(gradients: list[Tensor]) -> None:
            if record is not None:
                record.append(float(norm(gradients, order=1.0)))

        sampler = WindowSampler(text, CONTEXT, BATCH, seed)
        model = small_text.train(small_text.network(seed), sampler, schedule, peak, steps, look)
        return small_text.held_out(model, held)

    tuning = {
        (peak, warmup): loss(linear(warmup=warmup), peak, seed, norms[peak] if warmup == 0.0 else None)
        for peak in PEAKS
        for warmup in WARMUPS
    }
    base = min(PEAKS, key=lambda peak: tuning[peak, 0.0])
    refined = catalog.resolve("refined").from_norms(norms[base])
    peak, warmup = min(tuning, key=tuning.__getitem__)
    own_peak = min(PEAKS, key=lambda peak: loss(refined, peak, seed))
    others = range(seed + 1, seed + 1 + seeds)
    ends = [[loss(linear(warmup=warmup), peak, other) for other in others]]
    ends.append([loss(refined, own_peak, other) for other in others])
    return _judged(ends, {"linear": [peak, warmup], "refined": [own_peak], "base": [base]}, refined.factors)


def _judged(ends: list[list[float]], chosen: dict[str, list[float]], factors: list[float]) -> Finding:
    difference = paired(ends[1], ends[0])
    mean = [sum(values) / len(values) for values in ends]
    low, high = difference.low or difference.mean, difference.high or difference.mean
    allowed = MARGIN * mean[0]
    top = (factors.index(1.0) + 1) / len(factors)
    return Finding(
        numbers={
            "linear": [round(value, 5) for value in ends[0]],
            "refined": [round(value, 5) for value in ends[1]],
            "difference": difference.mean,
            "low": low,
            "high": high,
            **{f"tuned rate and warm-up, {name}": values for name, values in chosen.items()},
            "first factor": factors[0],
            "peak at": top,
        },
        holds=True if high <= allowed else False if low > allowed else None,
        sentence=(
            f"Refined {mean[1]:.4f} nats a character, linear decay with a tuned warm-up {mean[0]:.4f}: "
            f"{difference.mean / mean[0]:+.2%} [{low / mean[0]:+.2%}, {high / mean[0]:+.2%}] over {len(ends[0])} "
            f"seeds; the refined schedule begins at {factors[0]:.2f} of its peak and reaches it at {top:.0%} of "
            "the run."
        ),
    )
