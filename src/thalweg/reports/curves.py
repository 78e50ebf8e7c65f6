"""A curve of any length in bounded memory: buckets that keep their lowest and highest point, and their mean.

Points arrive one at a time. When there are too many buckets, neighbours are merged in pairs and every bucket holds
twice as many points. A spike of one step in a million therefore stays visible, and a report stays small.

A run that goes back (resume from a checkpoint, restore of a snapshot) walks some steps twice. `rewind` moves the
points of the abandoned walk aside: they stay visible, but no line or average runs through them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

MAX_BUCKETS = 750
MAX_PINNED = 240
MAX_ABANDONED = 240
SHORTEST_TREND = 8


class Position(NamedTuple):
    """Where on the way: completed steps, tokens and seconds; what a run did not record is None."""

    step: float
    tokens: float | None
    seconds: float | None


class Point(NamedTuple):
    """One measured value at a position."""

    at: Position
    value: float


@dataclass(slots=True)
class Bucket:
    """Neighbouring points: how many, their sum, the two extremes and the two ends."""

    count: int
    total: float
    first: Point
    last: Point
    lowest: Point
    highest: Point

    def absorb(self, other: Bucket) -> None:
        """Take in the bucket that follows this one."""
        self.count += other.count
        self.total += other.total
        self.last = other.last
        if other.lowest.value < self.lowest.value:
            self.lowest = other.lowest
        if other.highest.value > self.highest.value:
            self.highest = other.highest

    def extremes(self) -> list[Point]:
        """The lowest and the highest point in the order of the run; one point if they are the same."""
        if self.lowest is self.highest:
            return [self.lowest]
        return sorted((self.lowest, self.highest), key=lambda point: point.at.step)


@dataclass(slots=True)
class Curve:
    """A quantity along the run, in at most `MAX_BUCKETS` buckets."""

    buckets: list[Bucket] = field(default_factory=list)
    pinned: list[Point] = field(default_factory=list)
    abandoned: list[Point] = field(default_factory=list)
    points_seen: int = 0
    points_a_bucket: int = 1

    def add(self, at: Position, value: float) -> None:
        """Append a finite value; positions come in the order of the run."""
        self.points_seen += 1
        point = Point(at, value)
        last = self.buckets[-1] if self.buckets else None
        if last is not None and last.count < self.points_a_bucket:
            last.count += 1
            last.total += value
            last.last = point
            if value < last.lowest.value:
                last.lowest = point
            elif value > last.highest.value:
                last.highest = point
            return
        if len(self.buckets) == MAX_BUCKETS:
            self._halve()
        self.buckets.append(Bucket(1, value, point, point, point, point))

    def _halve(self) -> None:
        merged = self.buckets[::2]
        for bucket, follower in zip(merged, self.buckets[1::2], strict=False):
            bucket.absorb(follower)
        self.buckets = merged
        self.points_a_bucket *= 2

    @property
    def last(self) -> Point | None:
        """The newest point that no rewind took away."""
        return self.buckets[-1].last if self.buckets else None

    @property
    def first(self) -> Point | None:
        """The oldest point."""
        return self.buckets[0].first if self.buckets else None

    def pin(self) -> None:
        """Keep the newest point whatever happens to its bucket (something happened there)."""
        if self.last is not None and len(self.pinned) < MAX_PINNED:
            self.pinned.append(self.last)

    def rewind(self, step: float) -> None:
        """Put aside what was walked after `step`; a bucket that straddles `step` goes as a whole."""
        while self.buckets and self.buckets[-1].last.at.step > step:
            self.abandoned.extend(self.buckets.pop().extremes())
        self.abandoned += [point for point in self.pinned if point.at.step > step]
        self.pinned = [point for point in self.pinned if point.at.step <= step]
        while len(self.abandoned) > MAX_ABANDONED:
            self.abandoned = self.abandoned[::2]

    def points(self) -> list[Point]:
        """At most 2 * MAX_BUCKETS + MAX_PINNED + 2 points: extremes, pinned ones and both ends, in order."""
        kept = {point for bucket in self.buckets for point in bucket.extremes()}
        kept.update(self.pinned)
        kept.update(point for point in (self.first, self.last) if point is not None)
        return sorted(kept, key=lambda point: (point.at.step, point.at.seconds or 0.0))

    def median(self) -> float | None:
        """The median of the buckets' means: what was usual, whatever single steps did."""
        if not self.buckets:
            return None
        return float(np.median([bucket.total / bucket.count for bucket in self.buckets]))

    def trend(self, *, logarithmic: bool = False) -> list[Point]:
        """The smoothed curve: a local line fitted around every bucket; empty when there are too few points.

        `logarithmic` smooths the logarithm, for quantities that live on a log axis; it needs positive means.
        """
        means = np.array([bucket.total / bucket.count for bucket in self.buckets])
        if logarithmic and (means <= 0).any():
            return []
        if len(means) < SHORTEST_TREND:
            return []
        counts = np.array([bucket.count for bucket in self.buckets], dtype=float)
        smooth = local_line(np.log(means) if logarithmic else means, counts)
        smooth = np.exp(smooth) if logarithmic else smooth
        return [Point(middle(bucket), float(value)) for bucket, value in zip(self.buckets, smooth, strict=True)]


def middle(bucket: Bucket) -> Position:
    """The position halfway between a bucket's ends."""
    first, last = bucket.first.at, bucket.last.at

    def between(low: float | None, high: float | None) -> float | None:
        return None if low is None or high is None else (low + high) / 2

    tokens = between(first.tokens, last.tokens)
    return Position((first.step + last.step) / 2, tokens, between(first.seconds, last.seconds))


def local_line(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Kernel-weighted local linear regression over the index: no lag, and no bias at the two ends.

    Args:
        values: [n] values in order.
        weights: [n] how many points stand behind each value.

    Returns:
        [n] fitted values. The Gaussian kernel's width is 1.5% of the length, at least one index.
    """
    index = np.arange(len(values), dtype=float)
    width = max(1.0, 0.015 * len(values))
    distance = index[None, :] - index[:, None]
    kernel = np.exp(-0.5 * (distance / width) ** 2) * weights[None, :]
    moment0 = kernel.sum(1)
    moment1 = (kernel * distance).sum(1)
    moment2 = (kernel * distance**2).sum(1)
    right0 = kernel @ values
    right1 = (kernel * distance) @ values
    determinant = moment0 * moment2 - moment1**2
    return (moment2 * right0 - moment1 * right1) / determinant
