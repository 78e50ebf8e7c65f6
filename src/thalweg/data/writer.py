"""One side of the split on its way to disk: token shards and the document index, written as they come."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

SHARD_TOKENS = 1 << 26


class SplitWriter:
    """Appends documents to `<name>-00000.tokens`, ... and to `<name>.offsets` and `<name>.bytes` (int64).

    Args:
        folder: where the files go. item_bytes: 2 or 4 bytes a token id.
        shard_tokens: the most tokens in a file.
    """

    def __init__(self, folder: Path, name: str, item_bytes: int, shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder, self._name, self._item = folder, name, item_bytes
        self._shard_bytes = shard_tokens * item_bytes
        self._shards: list[dict[str, Any]] = []
        self._shard: IO[bytes] | None = None
        self._room = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._offsets = open(folder / f"{name}.offsets", "wb")  # noqa: SIM115 - closed in finish() or close()
        self._sizes = open(folder / f"{name}.bytes", "wb")  # noqa: SIM115
        self._offsets.write(np.zeros(1, "<i8").tobytes())
        self.tokens = self.bytes = self.documents = 0

    def add(self, ids: memoryview, counts: np.ndarray, sizes: np.ndarray) -> None:
        """Append documents: their ids, and for each its number of tokens and of UTF-8 bytes."""
        self._offsets.write((self.tokens + np.cumsum(counts)).astype("<i8").tobytes())
        self._sizes.write(sizes.astype("<i8").tobytes())
        self.tokens += int(counts.sum())
        self.bytes += int(sizes.sum())
        self.documents += len(counts)
        while ids:
            if self._room == 0:
                self._close_shard()
                name = f"{self._name}-{len(self._shards):05d}.tokens"
                self._shard = open(self._folder / name, "wb")  # noqa: SIM115
                self._shards.append({"file": name, "tokens": 0})
                self._digest = hashlib.blake2b(digest_size=16)
                self._room = self._shard_bytes
            part, ids = ids[: self._room], ids[self._room :]
            assert self._shard is not None
            self._shard.write(part)
            self._digest.update(part)
            self._room -= len(part)
            self._shards[-1]["tokens"] += len(part) // self._item

    def finish(self) -> dict[str, Any]:
        """Bring everything to the disk and return this split's part of the manifest."""
        self._close_shard()
        for index in (self._offsets, self._sizes):
            _sync(index)
        return {
            "tokens": self.tokens,
            "bytes": self.bytes,
            "documents": self.documents,
            "shards": self._shards,
        }

    def close(self) -> None:
        """Close the files, finished or not."""
        for file in (self._shard, self._offsets, self._sizes):
            if file is not None:
                # On a full disk closing fails as writing did; the folder is about to be removed anyway.
                with contextlib.suppress(OSError):
                    file.close()

    def _close_shard(self) -> None:
        if self._shard is not None:
            _sync(self._shard)
            self._shards[-1]["hash"] = self._digest.hexdigest()
            self._shard = None


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (fsync of a file does not)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
