"""Which window goes into which batch: a pure function of (seed, step), so that resuming needs no replay.

The training tokens are cut into windows of `context` tokens (a window reads one token more, for the last target).
Each epoch visits all windows once, in an order given by a keyed permutation that is *computed*, not stored: a Feistel
network permutes 0..4^h-1 for any round function, and values that fall outside 0..n-1 are sent through again until they
fall inside (cycle walking), which makes it a permutation of 0..n-1 (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002). Memory does not depend on the number of windows.
"""

from __future__ import annotations

import copy
import hashlib
import math

import numpy as np
import torch

from thalweg.data.part import Part
from thalweg.data.store import TokenSplit
from thalweg.errors import DataError

_ROUNDS = 8


def permute(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Send indices in 0..size-1 through keyed permutations of 0..size-1.

    Args:
        index: int64 [n]. size: of the domain, at least 1.
        keys: uint64 [rounds, n] or [rounds, 1]: the round keys of each index; equal keys, equal permutation.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    value = _feistel(index.astype(np.uint64), half, mask, keys)
    outside = np.flatnonzero(value >= size)
    while len(outside):
        value[outside] = _feistel(value[outside], half, mask, keys if keys.shape[1] == 1 else keys[:, outside])
        outside = outside[value[outside] >= size]
    return value.astype(np.int64)


def _feistel(value: np.ndarray, half: np.uint64, mask: np.uint64, keys: np.ndarray) -> np.ndarray:
    left, right = value >> half, value & mask
    for key in keys:
        # The finalizer of SplitMix64 (Steele et al. 2014), which stirs all bits into all bits.
        mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
    return (left << half) | right


def epoch_keys(seed: int, epoch: int) -> np.ndarray:
    """The round keys of an epoch, uint64 [rounds]."""
    digest = hashlib.blake2b(f"thalweg {seed} {epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, "<u8")


class WindowSampler:
    """Batches of windows of a split.

    Row i of the batch of step s is number s * batch_size + i in the endless sequence of epochs. With
    `world_size` ranks, each gets a contiguous share of the same global batch.

    Args:
        context: tokens in a window. batch_size: windows in the global batch, over all ranks.

    Raises:
        DataError: the split has fewer windows than a batch, or the ranks cannot share a batch equally.
    """

    def __init__(
        self, split: TokenSplit | Part, context: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if context < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise DataError(
                f"Context {context}, batch size {batch_size}, rank {rank} of {world_size} make no batch",
                fix="Context and batch size are at least 1, and a rank is below the world size.",
            )
        if batch_size % world_size:
            raise DataError(
                f"A batch of {batch_size} cannot be shared equally by {world_size} ranks",
                fix=f"Use a batch size that is a multiple of {world_size}.",
            )
        self.windows: int = max(0, split.token_count - 1) // context
        if self.windows < batch_size:
            raise DataError(
                f"The corpus is smaller than one batch: it has {split.token_count} tokens and a batch of "
                f"{batch_size} windows of {context} tokens needs {batch_size * context + 1}",
                where=f"split {split.name!r}",
                fix="Use a shorter context, a smaller batch size or more text.",
            )
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self._split, self._first = split, 0
        share = batch_size // world_size
        self._rows = np.arange(rank * share, (rank + 1) * share, dtype=np.int64)

    def reserve(self, share: float) -> WindowSampler:
        """Keep a share of the windows, the last ones and at least a batch, out of all batches from here on.

        Returns:
            A sampler of those windows: batches that training never sees, for what is tuned while it goes on.

        Raises:
            DataError: what is left is less than a batch.
        """
        count = max(math.ceil(share * self.windows), self.batch_size)
        if self.windows - count < self.batch_size:
            raise DataError(
                f"{self.windows} windows are too few to set {count} of them aside and train on batches of "
                f"{self.batch_size}",
                where=f"split {self._split.name!r}",
                fix="Use a shorter context, a smaller batch size or more text.",
            )
        aside = copy.copy(self)
        self.windows -= count
        aside.windows, aside._first = count, self._first + self.windows
        return aside

    def epoch(self, step: int) -> float:
        """Epochs completed before `step`."""
        return step * self.batch_size / self.windows

    def window_indices(self, step: int) -> np.ndarray:
        """The windows of this rank's rows at `step`: int64 [batch_size / world_size]."""
        return self.windows_at(step * self.batch_size + self._rows)

    def windows_at(self, numbers: np.ndarray) -> np.ndarray:
        """The windows at consecutive places in the sequence of epochs, at most a batch: int64 [n] -> int64 [n]."""
        epoch, index = np.divmod(numbers, self.windows)
        first, last = int(epoch[0]), int(epoch[-1])
        keys = epoch_keys(self.seed, first)[:, None]
        if last != first:
            # A batch is never longer than an epoch, so it touches at most two.
            keys = np.where(epoch == first, keys, epoch_keys(self.seed, last)[:, None])
        return permute(index, self.windows, keys)

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of `step`: "input_ids" and "targets", LongTensor [batch_size / world_size, context]."""
        rows = self.read(self.window_indices(step))
        return {
            "input_ids": torch.from_numpy(rows[:, :-1].copy()),
            "targets": torch.from_numpy(rows[:, 1:].copy()),
        }

    def read(self, windows: np.ndarray) -> np.ndarray:
        """The tokens of windows, with the one after: int64 [n, context + 1]."""
        rows = np.empty((len(windows), self.context + 1), np.int64)
        for row, window in zip(rows, windows.tolist(), strict=True):
            self._split.read_into((self._first + window) * self.context, row)
        return rows
