"""Is the loss of a trained model flat in the share of weights that are pruned, up to a knee, and steep behind it?

The smallest weights are set to zero without training, on a grid of 5% steps, until the calibration text costs 0.02 nats
a token more: the knee. Beside it stand one threshold for each matrix in place of one for all, and random masks. That
the curve is flat is then asked of held-out text.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import Tensor

from thalweg import catalog
from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.spread import spread
from thalweg.arena.claims.trained import CONTEXT, Trained, trained
from thalweg.models.compression import block_linears
from thalweg.models.text_loss import text_loss

WINDOWS, DRAWS, TOLERANCE, STEP = 64, 3, 0.02, 0.05
EARLIEST, LATEST = 0.3, 0.6  # knees of the source, over models and tasks
BEHIND = 0.3  # so much further the loss must be STEEP times the tolerance higher
STEEP = 10.0
BETTER = 10.0  # times the rise of magnitude: what random masks cost at the knee


def essential_knee(
    seed: int = 0, source: Trained | None = None, windows: int = WINDOWS, draws: int = DRAWS, step: float = STEP
) -> Finding:
    """Knees and rises of the loss; `source`: a trained model and its text, the shared one if left out."""
    given = source or trained()
    text, held = given.calibration(windows, seed), spread(given.store.held_out, windows, CONTEXT)
    method = catalog.resolve("essential_sparsity")
    curves = {
        scope: method(tolerance=TOLERANCE, step=step, scope=scope).curve(given.model(), text)
        for scope in ("global", "layer")
    }
    knee = curves["global"]["knee"]
    pruned = given.model()
    dense = text_loss(pruned, held)
    method(tolerance=TOLERANCE, step=step).compress(pruned, text)
    rise = text_loss(pruned, held) - dense
    random = [_random(given.model(), knee, draw, held) - dense for draw in range(draws * seed, draws * (seed + 1))]
    behind = _rise_at(curves["global"], knee + BEHIND)
    return Finding(
        numbers={
            "sparsities": curves["global"]["sparsities"],
            "rise, global": _rises(curves["global"]),
            "rise, layer by layer": _rises(curves["layer"]),
            "knee": knee,
            "knee, layer by layer": curves["layer"]["knee"],
            "held-out loss": round(dense, 4),
            "held-out rise at the knee": round(rise, 4),
            "held-out rise of random masks there": [round(value, 4) for value in random],
            f"rise {BEHIND:g} behind the knee": round(behind, 4) if math.isfinite(behind) else "more than a nat",
        },
        holds=holds(knee, rise, behind, min(random)),
        sentence=(
            f"{knee:.0%} of the block weights go for {TOLERANCE} nats of the calibration text and {rise:+.4f} of "
            f"held-out text ({curves['layer']['knee']:.0%} with one threshold a matrix), random masks of that size "
            f"cost {statistics.fmean(random):.2f}; {knee + BEHIND:.0%} cost {_said(behind)}."
        ),
    )


def holds(knee: float, rise: float, behind: float, random: float) -> bool:
    """Of the knee, the held-out rise there, the rise behind it, and what the best random masks cost at the knee."""
    flat, steep = rise <= 2 * TOLERANCE, behind > STEEP * TOLERANCE
    return EARLIEST <= knee <= LATEST and flat and steep and random > BETTER * max(rise, 0.0)


def _rises(curve: dict[str, Any]) -> list[float]:
    return [round(loss - curve["losses"][0], 4) for loss in curve["losses"]]


def _rise_at(curve: dict[str, Any], sparsity: float) -> float:
    """Of the last point up to there; without end where the curve ends before, since it ends a nat higher."""
    if curve["sparsities"][-1] < sparsity - 1e-9 and curve["losses"][-1] > curve["losses"][0] + 1.0:
        return math.inf
    up_to = [index for index, value in enumerate(curve["sparsities"]) if value <= sparsity + 1e-9]
    return curve["losses"][up_to[-1]] - curve["losses"][0]


def _said(rise: float) -> str:
    return f"{rise:.2f}" if math.isfinite(rise) else "more than a nat"


def _random(model: Any, sparsity: float, draw: int, held: Tensor) -> float:
    """Loss with a random share of each matrix at zero."""
    generator = torch.Generator().manual_seed(draw)
    for linear in block_linears(model).values():
        count = math.floor(sparsity * linear.weight.numel() + 1e-6)
        keep = torch.ones(linear.weight.numel(), dtype=torch.bool)
        keep[torch.randperm(len(keep), generator=generator)[:count]] = False
        linear.prune(keep.view(linear.shape))
    return text_loss(model, held)
