"""The published shapes and schedules of multigrid training."""

from __future__ import annotations

import math

import pytest

from thalweg.methods.optimizers.multigrid_shapes import cycled_batches, stretched_epochs, video_cycle

# Kinetics-400, SlowFast R50: the rate falls at these epochs of 239.
STEPS, TOTAL = (0, 94, 154, 196), 239


def test_shapes_of_the_standard_setting():
    diagonal = pytest.approx(224 * math.sqrt(0.5))
    assert video_cycle(32, 224) == [
        [(16, 8, 112), (8, 8, diagonal), (8, 8, 158)],
        [(8, 16, 112), (4, 16, diagonal), (4, 16, 158)],
        [(8, 16, 112), (4, 16, diagonal), (2, 16, 224)],
        [(4, 32, 112), (2, 32, diagonal), (1, 32, 224)],
    ]


def test_an_iteration_always_costs_the_same():
    for stage in video_cycle(32, 224):
        for rows, frames, side in stage:
            assert rows * frames * side**2 == pytest.approx(32 * 224**2, rel=0.01)


def test_epochs_of_the_standard_setting():
    """As computed by the authors' code."""
    stages = stretched_epochs(STEPS, TOTAL, video_cycle(32, 224), 1.5)
    until = [73, 110, 142, 158, 205, 228, 248, 259, 291, 308, 322, 329, 358]
    assert [stage.until for stage in stages] == until
    assert [stage.rate_stage for stage in stages] == [0] * 4 + [1] * 4 + [2] * 4 + [3]
    assert [stage.shape.rows for stage in stages] == [8, 4, 2, 1] * 3 + [1]


def test_stages_of_a_cycle_have_equal_iterations():
    stages = stretched_epochs((0, 9000), 10_000, video_cycle(32, 224), 1.0)
    lengths = [late.until - early for late, early in zip(stages, [0, *(stage.until for stage in stages)], strict=False)]
    batches = [sum(shape.rows for shape in stage) / 3 for stage in video_cycle(32, 224)]
    assert batches == pytest.approx([10.667, 5.333, 4.667, 2.333], abs=1e-3)
    iterations = [length / batch for length, batch in zip(lengths, batches, strict=False)]
    assert iterations == pytest.approx([iterations[0]] * 4, rel=2e-3)


def test_without_coarse_shapes_it_is_the_schedule_of_before():
    stages = stretched_epochs(STEPS, TOTAL, video_cycle(32, 224, long=[(1.0, 1.0)], short=[1.0, 1.0]), 1.0)
    assert [(stage.rate_stage, stage.until) for stage in stages] == [(0, 94), (1, 154), (2, 196), (3, 239)]
    assert {stage.shape for stage in stages} == {(1, 32, 224)}


def test_batches_cycle_and_every_sample_is_used_once():
    batches = list(cycled_batches(iter(range(21)), (8, 4, 2)))
    assert [len(batch) for batch in batches] == [8, 4, 2]
    batches = list(cycled_batches(range(28), (8, 4, 2)))
    assert [len(batch) for batch in batches] == [8, 4, 2] * 2
    assert [index for batch in batches for index, _ in batch] == list(range(28))
    assert [batch[0][1] for batch in batches] == [0, 1, 2, 0, 1, 2]
    assert all(len({place for _, place in batch}) == 1 for batch in batches)
