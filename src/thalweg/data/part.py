"""Half of a split's documents, so that what is tuned on is never what is reported on.

The documents are cut where half of the tokens lie behind; a split of a single document is cut inside it.
"""

from __future__ import annotations

import numpy as np

from thalweg.data.store import TokenSplit
from thalweg.errors import DataError

PARTS = ("all", "reporting", "tuning")


class Part:
    """Documents [first, last) of a split, read as a split of their own; has what evaluation and samplers ask for."""

    def __init__(self, split: TokenSplit, start: int, stop: int, sizes: np.ndarray, offsets: np.ndarray) -> None:
        self.name, self._split, self._start = split.name, split, start
        self._sizes, self._offsets = sizes, offsets
        self.token_count = stop - start
        self.byte_count = int(sizes.sum())
        self.document_count = len(sizes)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 of this part, int64. Raises IndexError outside 0..token_count."""
        if not 0 <= start <= stop <= self.token_count:
            raise IndexError(f"tokens {start}..{stop} of {self.token_count}")
        return self._split.read(self._start + start, self._start + stop)

    def read_into(self, start: int, out: np.ndarray) -> None:
        """As TokenSplit.read_into."""
        self._split.read_into(self._start + start, out)

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        """As TokenSplit.documents, counted from this part's beginning."""
        return self._offsets, self._sizes


def part_of(split: TokenSplit, part: str) -> TokenSplit | Part:
    """ "all" is the split itself; "reporting" is its first half, "tuning" its second.

    Raises:
        DataError: a half has fewer than two tokens, so nothing could be predicted in it.
    """
    if part == "all":
        return split
    offsets, sizes = (np.asarray(values) for values in split.documents())
    count = split.token_count
    if count < 4:
        raise DataError(
            f"{count} held-out tokens cannot be divided into a half to tune on and a half to report on",
            where="data.held_out",
            fix="Hold out more of the corpus.",
        )
    if len(sizes) < 2:
        # One document: its bytes are spread evenly over its tokens.
        middle = count // 2
        cuts = np.array([0, middle, count])
        sizes = np.diff(np.round(cuts / count * sizes.sum())).astype(np.int64)
        offsets, border = cuts, 1
    else:
        border = int(np.clip(np.abs(offsets - count / 2).argmin(), 1, len(sizes) - 1))
    chosen = slice(0, border) if part == "reporting" else slice(border, len(sizes))
    start, stop = int(offsets[chosen.start]), int(offsets[chosen.stop])
    return Part(split, start, stop, sizes[chosen], offsets[chosen.start : chosen.stop + 1] - start)
