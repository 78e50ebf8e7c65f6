"""Does AWQ lose less than rounding to nearest, on a trained model as it is and with outliers among its channels?

3 bits, a scale and a zero for 32 weights. Four ways to get there: rounding to nearest, the search for ranges alone, the
search for scales alone, and both. Small models have mild outliers, so the same is measured once more on a copy with
planted ones: in every norm the gain of 1% of the channels (at least one) times 30, and the weights behind it divided by
30, which leaves the model's function as it was.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from thalweg import catalog
from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.trained import Trained, trained
from thalweg.models.folding import Foldings, multiply
from thalweg.models.walker import walk

BITS, GROUP, WINDOWS = 3, 32, 16
SHARE, FACTOR = 0.01, 30.0
ARMS: dict[str, dict[str, int]] = {
    "rounding": {"ratios": 1, "clips": 1},
    "ranges": {"ratios": 1},
    "scales": {"clips": 1},
    "awq": {},
}


def awq_against_rounding(seed: int = 0, source: Trained | None = None, windows: int = WINDOWS) -> Finding:
    """What each way adds to the held-out loss; `source`: a trained model and its text, the shared one if left out."""
    given = source or trained()
    calibration = given.calibration(windows, seed)
    before = given.evaluation(given.model()).loss
    added: dict[str, dict[str, float]] = {"plain": {}, "outliers": {}}
    for kind, losses in added.items():
        for arm, options in ARMS.items():
            model = given.model()
            if kind == "outliers":
                plant(model, calibration, seed)
            catalog.resolve("awq")(bits=BITS, group=GROUP, **options).compress(model, calibration)
            losses[arm] = given.evaluation(model).loss - before
    plain, outliers = added["plain"], added["outliers"]
    return Finding(
        numbers={
            "loss before": round(before, 5),
            **{
                f"added by {arm}, {kind}": round(loss, 5)
                for kind, losses in added.items()
                for arm, loss in losses.items()
            },
        },
        holds=plain["awq"] < plain["rounding"] and outliers["awq"] < outliers["rounding"],
        sentence=(
            f"In {BITS} bits, groups of {GROUP}, AWQ adds {plain['awq']:.4f} nats to the held-out loss of {before:.3f} "
            f"and rounding to nearest {plain['rounding']:.4f}; with planted outliers {outliers['awq']:.4f} and "
            f"{outliers['rounding']:.4f}."
        ),
    )


def plant(model: nn.Module, calibration: Tensor, seed: int = 0, share: float = SHARE, factor: float = FACTOR) -> None:
    """Multiply the gains of some channels of every norm in the blocks, and divide the weights behind them, in place."""
    generator = torch.Generator().manual_seed(seed)
    for block in walk(model, calibration[:1]):
        foldings = Foldings(block)
        for names in block.groups():
            found: Any = foldings.find(names)
            if found is None or found.linear is not None:
                continue
            columns = block.linears[names[0]].shape[1]
            scale = torch.ones(columns)
            scale[torch.randperm(columns, generator=generator)[: math.ceil(share * columns)]] = 1.0 / factor
            found.divide(scale)
            for name in names:
                multiply(block.linears[name], scale)
