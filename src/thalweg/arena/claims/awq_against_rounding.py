"""Does AWQ lose less than rounding to nearest, on a trained model as it is and with outliers among its channels?

3 bits, a scale and a zero for 32 weights. Four ways to get there: rounding to nearest, the search for ranges alone, the
search for scales alone, and both. Small models have mild outliers, so the same is measured once more on a copy with
planted ones: in every norm the gain of 1% of the channels (at least one) times 30, and the weights behind it divided by
30, which leaves the model's function as it was.

The calibration text is drawn several times. The claim asks that AWQ loses less than rounding to nearest on both copies,
by two standard errors over the draws; where it is neither lower nor higher by as much, nothing is decided.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from thalweg import catalog
from thalweg.arena.claims.finding import Finding, paired
from thalweg.arena.claims.trained import Trained, trained
from thalweg.models.folding import Foldings, multiply
from thalweg.models.walker import walk

BITS, GROUP, WINDOWS, DRAWS = 3, 32, 32, 3
SHARE, FACTOR = 0.01, 30.0
ARMS: dict[str, dict[str, int]] = {
    "rounding": {"ratios": 1, "clips": 1},
    "ranges": {"ratios": 1},
    "scales": {"clips": 1},
    "awq": {},
}


def awq_against_rounding(
    seed: int = 0, source: Trained | None = None, windows: int = WINDOWS, draws: int = DRAWS
) -> Finding:
    """What each way adds to the held-out loss; `source`: a trained model and its text, the shared one if left out."""
    given = source or trained()
    before = given.evaluation(given.model()).loss
    added: dict[str, dict[str, list[float]]] = {kind: {arm: [] for arm in ARMS} for kind in ("plain", "outliers")}
    for draw in range(draws * seed, draws * (seed + 1)):
        calibration = given.calibration(windows, draw)
        for kind, losses in added.items():
            for arm, options in ARMS.items():
                model = given.model()
                if kind == "outliers":
                    plant(model, calibration, seed)
                catalog.resolve("awq")(bits=BITS, group=GROUP, **options).compress(model, calibration)
                losses[arm].append(given.evaluation(model).loss - before)
    plain, outliers = ({arm: statistics.fmean(losses[arm]) for arm in ARMS} for losses in added.values())
    gaps = [paired(losses["awq"], losses["rounding"]) for losses in added.values()]
    return Finding(
        numbers={
            "loss before": round(before, 5),
            **{
                f"added by {arm}, {kind}": [round(value, 5) for value in values]
                for kind, losses in added.items()
                for arm, values in losses.items()
            },
            "awq less rounding, plain and outliers": [round(mean, 5) for mean, _ in gaps],
            "standard errors": [round(error, 5) for _, error in gaps],
        },
        holds=judged(gaps),
        sentence=(
            f"In {BITS} bits, groups of {GROUP}, AWQ adds {plain['awq']:.4f} nats to the held-out loss of {before:.3f} "
            f"and rounding to nearest {plain['rounding']:.4f} (difference {gaps[0][0]:+.4f}, standard error "
            f"{gaps[0][1]:.4f} over {draws} draws of the text); with planted outliers {outliers['awq']:.4f} and "
            f"{outliers['rounding']:.4f}."
        ),
    )


def judged(gaps: list[tuple[float, float]]) -> bool | None:
    """Of means and standard errors of what AWQ adds less what rounding adds."""
    if any(mean > 2 * error for mean, error in gaps):
        return False
    return True if all(mean < -2 * error for mean, error in gaps) else None


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
