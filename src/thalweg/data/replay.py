"""Replay: windows of an old corpus among those of a new one, at a rate and at the same total number of tokens.

The rows of all batches are numbered, step s having s * batch_size ... (s + 1) * batch_size - 1. Row n is drawn from
the old split where the whole part of n * rate goes up after it, from the new one elsewhere: an accumulator of
fractions, worked out instead of kept, so that a batch is a pure function of (seed, step), any number of batches holds
its share of old windows to less than one row, and the rows are spread evenly over a batch, so also over ranks. Within
each split windows come in the order of `WindowSampler`: all once, then all again in another order.

Source: the compute-equivalent replay of "Simple and Scalable Strategies to Continually Pre-train Large Language Models"
(2024, arXiv:2403.08763). Old windows are drawn from all of the old corpus, whatever part of it the run before has seen.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch

from thalweg.data.part import Part
from thalweg.data.sampler import WindowSampler
from thalweg.data.store import TokenSplit
from thalweg.errors import DataError

# Seeds of runs are below this, so no run has drawn the old corpus in the order in which it is replayed.
_OTHER_SEED = 2**63
# Rates are fractions with at most this denominator: exact for any rate that a person writes, and row numbers up to
# 10^12 times it stay within 64 bits.
_DENOMINATOR = 10**6


class ReplaySampler:
    """Batches of windows of two splits.

    Args:
        new, old: the splits.
        context, batch_size, seed, rank, world_size: as for `WindowSampler`.
        rate: share of all windows that is drawn from the old split, in [0, 1].

    Attributes:
        windows: rows it takes to see the new split once, replay among them; with rate 1, the old split.

    Raises:
        DataError: a rate out of range, or what `WindowSampler` raises for either split.
    """

    def __init__(
        self,
        new: TokenSplit | Part,
        old: TokenSplit | Part,
        context: int,
        batch_size: int,
        seed: int,
        rate: float,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0.0 <= rate <= 1.0:
            raise DataError(f"A replay rate of {rate:g} is no share", fix="Give a number from 0 to 1, such as 0.05.")
        self.rate = Fraction(rate).limit_denominator(_DENOMINATOR)
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self._new = WindowSampler(new, context, batch_size, seed, rank, world_size)
        # Only as many windows as a batch can ask for are needed of the old split.
        self._old = WindowSampler(old, context, max(math.ceil(batch_size * self.rate), 1), seed + _OTHER_SEED)
        share = batch_size // world_size
        self._rows = np.arange(rank * share, (rank + 1) * share, dtype=np.int64)
        self.windows = self._count()

    def reserve(self, share: float) -> WindowSampler:
        """Keep a share of the new split's windows out of all batches, as `WindowSampler.reserve`."""
        aside = self._new.reserve(share)
        self.windows = self._count()
        return aside

    def _count(self) -> int:
        return round(self._new.windows / (1 - self.rate)) if self.rate < 1 else self._old.windows

    def epoch(self, step: int) -> float:
        """Times that the new split was seen before `step`."""
        return step * self.batch_size / self.windows

    def replayed(self, step: int) -> np.ndarray:
        """Which of this rank's rows at `step` are old: bool [batch_size / world_size]."""
        rows = step * self.batch_size + self._rows
        return self._olds(rows + 1) > self._olds(rows)

    def _olds(self, rows: np.ndarray) -> np.ndarray:
        """How many of the first `rows` rows are old."""
        return rows * self.rate.numerator // self.rate.denominator

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of `step`: "input_ids" and "targets", LongTensor [batch_size / world_size, context]."""
        rows = step * self.batch_size + self._rows
        olds, old = self._olds(rows), self.replayed(step)
        tokens = np.empty((len(rows), self.context + 1), np.int64)
        for sampler, which, numbers in ((self._new, ~old, rows - olds), (self._old, old, olds)):
            if which.any():
                tokens[which] = sampler.read(sampler.windows_at(numbers[which]))
        return {
            "input_ids": torch.from_numpy(tokens[:, :-1].copy()),
            "targets": torch.from_numpy(tokens[:, 1:].copy()),
        }
