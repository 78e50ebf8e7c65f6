"""The shapes of multigrid training as published, for data with frames and sides (video), for loops of one's own.

A batch of B clips of T frames of S x S pixels costs about B T S^2. Long-cycle stage i has shape (T, S) = (T0/4, S0/r2),
(T0/2, S0/r2), (T0/2, S0), (T0, S0) with r2 the root of 2; within a stage the side goes through S0/2, S0/r2, S from one
iteration to the next (short cycle), and B follows so that the cost of an iteration stays. The rate is multiplied with
the stage's B over B0; the short cycle does not change it.

Source: "A Multigrid Method for Efficiently Training Video Models" (2019, arXiv:1912.00998). Compared with the authors'
code (facebookresearch/SlowFast): equal shapes and epochs for the standard schedule and two others. Our use on texts is
`multigrid`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

LONG = ((0.25, math.sqrt(0.5)), (0.5, math.sqrt(0.5)), (0.5, 1.0), (1.0, 1.0))
SHORT = (0.5, math.sqrt(0.5))


class Shape(NamedTuple):
    """A batch's shape: how many times the default batch, frames, side in pixels."""

    rows: int
    frames: int
    side: float


class Stage(NamedTuple):
    """A stretch of a schedule: which stage of the rate, the shape it is based on, the epoch it ends with."""

    rate_stage: int
    shape: Shape
    until: int


def video_cycle(
    frames: int,
    side: int,
    long: Sequence[tuple[float, float]] = LONG,
    short: Sequence[float] = SHORT,
) -> list[list[Shape]]:
    """For every long-cycle stage, coarse first, the shapes of its short cycle; the last is the stage's own."""
    cycle = []
    for frames_factor, side_factor in long:
        stage_frames, stage_side = round(frames * frames_factor), round(side * side_factor)
        sides = [*(side * factor for factor in short), stage_side]
        cycle.append([Shape(round(frames * side**2 / (stage_frames * s**2)), stage_frames, s) for s in sides])
    return cycle


def stretched_epochs(
    steps: Sequence[int], total: int, cycle: Sequence[Sequence[Shape]], epoch_factor: float = 1.5
) -> list[Stage]:
    """Lay a cycle into every stage of a rate that falls in steps.

    All stages of a cycle have the same number of iterations, so epochs in proportion to their mean batch. What follows
    the last fall of the rate is fine-tuning at the last shape, made shorter in iterations by as much as the rest. Then
    all is stretched to `epoch_factor` times the epochs of before.

    Args:
        steps: epochs at which the rate's stages begin, the first 0. total: epochs in all.
        cycle: as `video_cycle` gives it.
    """
    batches = [sum(shape.rows for shape in stage) / len(stage) for stage in cycle]
    lengths = [end - begin for begin, end in pairwise(steps)]
    parts = [
        (number, stage[-1], length * batch / sum(batches))
        for number, length in enumerate(lengths)
        for stage, batch in zip(cycle, batches, strict=True)
    ]
    iterations = sum(length * len(cycle) / sum(batches) for length in lengths)
    parts.append((len(lengths), cycle[-1][-1], (total - steps[-1]) * iterations / steps[-1] * batches[-1]))
    scale = total * epoch_factor / sum(epochs for _, _, epochs in parts)
    stages, spent = [], 0.0
    for number, shape, epochs in parts:
        spent += epochs * scale
        stages.append(Stage(number, shape, round(spent)))
    return stages


def cycled_batches(indices: Iterable[int], sizes: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Batches of (index, place in the short cycle) whose sizes go round; what is left over at the end is dropped.

    The place travels with the index, so that a loader's worker knows which size to cut the example to.
    """
    place, batch = 0, []
    for index in indices:
        batch.append((index, place))
        if len(batch) == sizes[place]:
            yield batch
            place, batch = (place + 1) % len(sizes), []
