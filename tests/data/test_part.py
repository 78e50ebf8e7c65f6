"""Halves of a split: disjoint, complete, and read like a split."""

from __future__ import annotations

import numpy as np
import pytest

from thalweg.data.part import Part, part_of
from thalweg.errors import DataError


class Split:
    """A split in memory, of documents of these lengths (separator included)."""

    def __init__(self, lengths: list[int]) -> None:
        self.name, self.lengths = "held_out", lengths
        self.tokens = np.arange(sum(lengths))
        self.token_count = len(self.tokens)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.tokens[start:stop].copy()

    def read_into(self, start: int, out: np.ndarray) -> None:
        out[:] = self.tokens[start : start + len(out)]

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        return np.cumsum([0, *self.lengths]), np.array([3 * length for length in self.lengths])


def halves(split: Split) -> tuple[Part, Part]:
    found = part_of(split, "reporting"), part_of(split, "tuning")  # type: ignore[arg-type]
    assert all(isinstance(part, Part) for part in found)
    return found  # type: ignore[return-value]


def test_all_is_the_split_itself():
    split = Split([5, 5])
    assert part_of(split, "all") is split  # type: ignore[arg-type,comparison-overlap]


@pytest.mark.parametrize("lengths", [[10, 4, 6, 20], [1, 30], [30, 1], [2, 2, 2, 2, 2], [3, 1]])
def test_halves_are_disjoint_and_complete(lengths):
    split = Split(lengths)
    first, second = halves(split)
    together = np.concatenate([part.read(0, part.token_count) for part in (first, second)])
    assert together.tolist() == split.tokens.tolist()
    assert first.document_count + second.document_count == len(lengths)
    assert min(first.document_count, second.document_count) >= 1
    assert first.byte_count + second.byte_count == 3 * sum(lengths)


def test_the_cut_is_nearest_to_the_middle():
    first, second = halves(Split([10, 4, 6, 20]))
    assert (first.token_count, second.token_count) == (20, 20)
    offsets, sizes = second.documents()
    assert offsets.tolist() == [0, 20]
    assert sizes.tolist() == [60]


def test_one_document_is_cut_inside():
    first, second = halves(Split([11]))
    assert (first.token_count, second.token_count) == (5, 6)
    assert first.byte_count + second.byte_count == 33
    assert second.read(0, 2).tolist() == [5, 6]


def test_reading_counts_from_the_part():
    _, second = halves(Split([10, 4, 6, 20]))
    out = np.empty(3, np.int64)
    second.read_into(1, out)
    assert out.tolist() == [21, 22, 23]
    with pytest.raises(IndexError):
        second.read(0, 21)


def test_too_little_to_divide():
    with pytest.raises(DataError, match="cannot be divided"):
        part_of(Split([3]), "tuning")  # type: ignore[arg-type]
