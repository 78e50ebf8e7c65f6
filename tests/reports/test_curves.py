"""Curves stay small, keep spikes and ends, and are smoothed without lag."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.reports.curves import MAX_BUCKETS, MAX_PINNED, Curve, Position, local_line


def at(step: int) -> Position:
    return Position(step, step * 10, step / 2)


def filled(count: int) -> Curve:
    curve = Curve()
    for step in range(1, count + 1):
        curve.add(at(step), 100 / step)
    return curve


def test_short_curve_keeps_every_point() -> None:
    curve = filled(MAX_BUCKETS)
    assert [point.at.step for point in curve.points()] == list(range(1, MAX_BUCKETS + 1))


@pytest.mark.parametrize("count", [MAX_BUCKETS + 1, 12_345, 100_000])
def test_long_curve_is_bounded_and_keeps_both_ends(count: int) -> None:
    points = filled(count).points()
    assert len(points) <= 2000
    assert len(points) > MAX_BUCKETS / 2
    assert points[0].at.step == 1
    assert points[-1].at.step == count
    assert points[-1].at.tokens == count * 10


def test_single_spikes_survive_in_both_directions() -> None:
    curve = Curve()
    for step in range(1, 50_001):
        curve.add(at(step), {31_234: 99.0, 7_777: -99.0}.get(step, 1.0))
    found = {point.at.step: point.value for point in curve.points()}
    assert found[31_234] == 99.0
    assert found[7_777] == -99.0


def test_pinned_points_survive_and_their_number_is_bounded() -> None:
    curve = Curve()
    for step in range(1, 50_001):
        curve.add(at(step), 1.0 + step % 7)
        if step % 50 == 0:
            curve.pin()
    steps = {point.at.step for point in curve.points()}
    assert {50, 100, 50 * MAX_PINNED} <= steps
    assert len(curve.pinned) == MAX_PINNED
    assert len(curve.points()) <= 2000


def test_bucket_means_are_exact_means() -> None:
    curve = filled(12_345)
    total = sum(bucket.total for bucket in curve.buckets)
    assert sum(bucket.count for bucket in curve.buckets) == 12_345
    assert total == pytest.approx(sum(100 / step for step in range(1, 12_346)))


def test_rewind_puts_the_abandoned_walk_aside() -> None:
    curve = filled(100)
    curve.rewind(60)
    assert curve.last is not None
    assert curve.last.at.step == 60
    assert [point.at.step for point in sorted(curve.abandoned, key=lambda p: p.at.step)] == list(range(61, 101))
    curve.add(at(61), 5.0)
    assert [point.at.step for point in curve.points()] == list(range(1, 62))


def test_trend_of_a_line_is_the_line_up_to_its_ends() -> None:
    line = 3.0 - 0.01 * np.arange(200)
    np.testing.assert_allclose(local_line(line, np.ones(200)), line, rtol=0, atol=1e-12)


def test_trend_takes_noise_away() -> None:
    noise = np.random.default_rng(0).normal(size=1000)
    smooth = local_line(noise, np.ones(1000))
    assert smooth.std() < 0.2
    assert abs(smooth.mean() - noise.mean()) < 0.02


def test_trend_has_as_few_points_as_buckets_and_none_when_too_short() -> None:
    assert filled(7).trend() == []
    assert len(filled(100_000).trend()) <= MAX_BUCKETS


def test_logarithmic_trend_of_a_power_is_exact_and_needs_positive_values() -> None:
    curve = Curve()
    for step in range(1, 101):
        curve.add(at(step), float(np.exp(0.05 * step)))
    values = [point.value for point in curve.trend(logarithmic=True)]
    np.testing.assert_allclose(values, np.exp(0.05 * np.arange(1, 101)), rtol=1e-9)
    curve.add(at(101), -1.0)
    assert curve.trend(logarithmic=True) == []


@settings(max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
def test_extremes_of_any_curve_survive(values: list[float]) -> None:
    curve = Curve()
    for step, value in enumerate(values, start=1):
        curve.add(at(step), value)
    kept = [point.value for point in curve.points()]
    assert min(kept) == min(values)
    assert max(kept) == max(values)
    assert len(kept) <= 2000
