"""Does a V-cycle over half the width and depth end with a lower loss than training as usual, for the same FLOPs?

The ladder's smallest model (4 layers of width 64, then 2 of width 32) predicts characters of code. Every arm spends the
same training FLOPs, those of all its models counted:

    plain       warm-up over the first 5%, then a linear decay to zero
    cycle       the warm-up; the small model for 10% of the FLOPs, at twice the rate (half the width), with a decay;
                then the large one, half mixed, with a decay from the peak
    restarted   plain, but after 15% a new optimizer and the peak again: what the cycle does to the rate, without levels

The peak is the best of three for the plain arm, on a draw that is not judged.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg import catalog
from thalweg.arena.claims import small_text
from thalweg.arena.claims.finding import Finding
from thalweg.data import WindowSampler
from thalweg.models.ladder import build, flops_per_token, nearest

CONTEXT, ROWS, STEPS, DRAWS = 64, 8, 120, 3
PEAKS = (0.0025, 0.005, 0.01)
WARMUP, SMALL, FASTER = 0.05, 0.10, 2.0  # shares of the FLOPs; the small model's rate over the peak
FIRST_DRAW, CHOOSING = 100, 99
HELD_OUT = 64  # windows


def level_cycle(seed: int = 0, steps: int = STEPS, draws: int = DRAWS) -> Finding:
    """Held-out nats a character of the arms, by draw of weights and of the order of the data."""
    train_on, held = small_text.code()
    peak = min(PEAKS, key=lambda peak: _plain(CHOOSING, train_on, held, steps, peak, restart=False))
    found: dict[str, list[float]] = {"plain": [], "cycle": [], "restarted": []}
    for draw in range(FIRST_DRAW + draws * seed, FIRST_DRAW + draws * (seed + 1)):
        found["plain"].append(_plain(draw, train_on, held, steps, peak, restart=False))
        found["restarted"].append(_plain(draw, train_on, held, steps, peak, restart=True))
        found["cycle"].append(_cycle(draw, train_on, held, steps, peak))
    gains = [plain - cycle for plain, cycle in zip(found["plain"], found["cycle"], strict=True)]
    mean = {arm: statistics.fmean(losses) for arm, losses in found.items()}
    return Finding(
        numbers={
            **{arm: [round(loss, 4) for loss in losses] for arm, losses in found.items()},
            "peak": peak,
            "gain of the cycle": round(statistics.fmean(gains), 4),
        },
        holds=min(gains) > 0.0 and mean["cycle"] < mean["restarted"],
        sentence=(
            f"Held-out nats a character for the same FLOPs: {mean['plain']:.3f} as usual, {mean['cycle']:.3f} with a "
            f"V-cycle, {mean['restarted']:.3f} with its restart of the rate and no small model ({draws} draws)."
        ),
    )


class _Course:
    """One arm's data, in the order in which its models ask for them."""

    def __init__(self, draw: int, split: Any) -> None:
        self.sampler, self.step = WindowSampler(split, CONTEXT, ROWS, draw), 0

    def train(self, model: nn.Module, rates: list[float]) -> None:
        """Train in place with a new Adam, one step for each rate."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        for rate in rates:
            _loss(model, self.sampler.batch(self.step)).backward()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            self.step += 1


def _model(draw: int) -> Any:
    return build(nearest("0.2M"), small_text.CHARACTERS, CONTEXT, draw)


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


@torch.no_grad()
def _held_out(model: nn.Module, held: dict[str, Tensor]) -> float:
    windows = {key: value[0, : HELD_OUT * CONTEXT].view(HELD_OUT, CONTEXT) for key, value in held.items()}
    return float(_loss(model, windows))


def _warmup(steps: int, peak: float) -> list[float]:
    return [peak * (step + 1) / steps for step in range(steps)]


def _decay(steps: int, peak: float) -> list[float]:
    return [peak * (1.0 - (step + 1) / steps) for step in range(steps)]


def _plain(draw: int, split: Any, held: dict[str, Tensor], steps: int, peak: float, restart: bool) -> float:
    """Training as usual; `restart` as above."""
    model, course = _model(draw), _Course(draw, split)
    warm, until = round(WARMUP * steps), round((WARMUP + SMALL) * steps)
    if restart:
        course.train(model, _warmup(warm, peak) + _decay(until - warm, peak))
        course.train(model, _decay(steps - until, peak))
    else:
        course.train(model, _warmup(warm, peak) + _decay(steps - warm, peak))
    return _held_out(model, held)


def _cycle(draw: int, split: Any, held: dict[str, Tensor], steps: int, peak: float) -> float:
    """The V-cycle with two levels."""
    model, course = _model(draw), _Course(draw, split)
    large = flops_per_token(model, context=CONTEXT)
    warm, until = round(WARMUP * steps), round((WARMUP + SMALL) * steps)

    def train(current: Any, level: int, leg: str) -> None:
        if leg == "down":
            course.train(current, _warmup(warm, peak))
        elif level == 1:
            cheaper = large / flops_per_token(current, context=CONTEXT)
            course.train(current, _decay(int((until - warm) * cheaper), FASTER * peak))
        else:
            course.train(current, _decay(steps - until, peak))

    catalog.resolve("multi_level")(model, train)
    return _held_out(model, held)
