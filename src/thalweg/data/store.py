"""The token store: tokens on disk, read as if they were one long array, without loading them.

Folder:
    manifest.json                   what the store was made of, and how much is in it; written last
    tokenizer/                      save_pretrained
    train-00000.tokens, ...         token ids, little-endian uint16 (vocabulary <= 65536) or uint32
    train.offsets, train.bytes      int64: where each document starts (one more at the end), its UTF-8 bytes
    held_out-00000.tokens, ...      the same for the held-out documents
Every document is closed by the tokenizer's end-of-text token.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "held_out")


class TokenSplit:
    """One side of a store.

    Attributes:
        token_count: tokens, with a separator for each document.
        byte_count: UTF-8 bytes of the documents, without separators.
        document_count: documents.
    """

    def __init__(self, folder: Path, name: str, entry: dict[str, Any], item_type: str) -> None:
        self.name = name
        self.token_count: int = entry["tokens"]
        self.byte_count: int = entry["bytes"]
        self.document_count: int = entry["documents"]
        self._shards = [
            np.memmap(folder / shard["file"], dtype=item_type, mode="r", shape=(shard["tokens"],))
            for shard in entry["shards"]
        ]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self._index = (folder / f"{name}.offsets", folder / f"{name}.bytes")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 as an int64 array of its own. Raises IndexError outside 0..token_count."""
        if not 0 <= start <= stop <= self.token_count:
            raise IndexError(f"tokens {start}..{stop} of {self.token_count}")
        out = np.empty(stop - start, np.int64)
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill `out` (one row, any integer type) with the tokens from `start` on; no bounds check."""
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1 if len(self._shards) > 1 else 0
        done = 0
        while done < len(out):
            first = start + done - int(self._starts[shard])
            part = self._shards[shard][first : first + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        """(offsets int64 [n+1], bytes int64 [n]): document i is tokens offsets[i]..offsets[i+1]-1, the last
        of which is its separator, and has bytes[i] UTF-8 bytes. Read-only, memory-mapped."""
        offsets, sizes = (np.memmap(path, dtype="<i8", mode="r") for path in self._index)
        return offsets, sizes


class TokenStore:
    """An opened store.

    Attributes:
        folder: where it is. manifest: as written (see building.py). train, held_out: the two sides.
        tokenizer: the tokenizer, loaded when first asked for. vocab_size: what a model for it needs.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open a finished store. Raises DataError when it is missing, of another format, or damaged."""
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.vocab_size: int = self.manifest["vocab_size"]
        self.train, self.held_out = (
            TokenSplit(self.folder, name, self.manifest["splits"][name], self.manifest["type"]) for name in SPLITS
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        from thalweg.data.tokenization import load_tokenizer

        return load_tokenizer(self.folder / "tokenizer")

    def verify(self) -> None:
        """Read all tokens and compare their hashes with the manifest. Raises DataError on the first difference."""
        for name in SPLITS:
            for shard in self.manifest["splits"][name]["shards"]:
                digest = hashlib.blake2b(digest_size=16)
                with open(self.folder / shard["file"], "rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
                if digest.hexdigest() != shard["hash"]:
                    raise _damaged(self.folder, f"{shard['file']} has other contents than when it was written")


def _damaged(folder: Path, found: str) -> DataError:
    return DataError(
        f"The token store is damaged: {found}",
        where=str(folder),
        fix="Delete the folder and prepare the corpus again.",
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except FileNotFoundError:
        raise DataError("There is no token store", where=str(folder), fix="Prepare the corpus first.") from None
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"its manifest cannot be read: {error}") from error
    try:
        if manifest["format"] != FORMAT:
            raise _damaged(folder, f"its format is {manifest['format']}, this version reads {FORMAT}")
        item = np.dtype(manifest["type"]).itemsize
        expected = {"tokenizer/tokenizer.json": None}
        for name in SPLITS:
            split = manifest["splits"][name]
            expected |= {shard["file"]: shard["tokens"] * item for shard in split["shards"]}
            expected |= {f"{name}.offsets": 8 * (split["documents"] + 1), f"{name}.bytes": 8 * split["documents"]}
            if sum(shard["tokens"] for shard in split["shards"]) != split["tokens"] or not split["tokens"]:
                raise _damaged(folder, f"the shards of {name} do not add up")
        int(manifest["vocab_size"])
    except (KeyError, TypeError) as error:
        raise _damaged(folder, f"its manifest lacks {error}") from error
    for file, size in expected.items():
        try:
            found = (folder / file).stat().st_size
        except OSError:
            raise _damaged(folder, f"{file} is missing") from None
        if size is not None and found != size:
            raise _damaged(folder, f"{file} has {found} bytes instead of {size}")
    return manifest
