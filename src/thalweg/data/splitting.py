"""Which documents are held out, and which ones the tokenizer learns from: one look at every document.

A document is held out when the hash of its text, as a number in [0, 1), is below `held_out`. So a document stays on its
side when others come and go, equal documents share a side, and no document is on both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from thalweg.errors import DataError

SAMPLE_BYTES = 16 << 20


def document_hash(document: bytes) -> int:
    """64 bits of BLAKE2b of the text (UTF-8)."""
    return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest(), "little")


@dataclass
class Survey:
    """What one pass over the corpus found.

    Attributes:
        threshold: documents whose hash is below it are held out.
        forced: the wanted share left a side empty, so the threshold was moved to the outermost document.
        documents: how many there are.
        sample: training documents for the tokenizer, in corpus order, at most SAMPLE_BYTES.
    """

    threshold: int
    forced: bool
    documents: int
    sample: list[bytes] = field(repr=False)


class _Sample:
    """A bounded sample spread evenly over a stream of unknown length, by halving.

    Keep the documents whose (second) hash is below a limit; when they outgrow the bound, halve the limit and drop
    those above it. What is kept depends only on the documents, and comes out in their order.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._limit = 1 << 64
        self._bytes = 0
        self._kept: list[tuple[int, bytes]] = []

    def offer(self, mark: int, document: bytes) -> None:
        # The split took the low hashes; multiplying by an odd number gives an independent order of the same hashes.
        rank = (mark * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        rank ^= rank >> 32
        rank = (rank * 0xD6E8FEB86659FD93) & 0xFFFFFFFFFFFFFFFF
        if rank >= self._limit or len(document) > self._bound:
            return
        self._kept.append((rank, document))
        self._bytes += len(document)
        while self._bytes > self._bound:
            self._limit >>= 1
            self._kept = [pair for pair in self._kept if pair[0] < self._limit]
            self._bytes = sum(len(kept) for _, kept in self._kept)

    def documents(self) -> list[bytes]:
        return [document for _, document in self._kept]


def survey(documents: Iterable[bytes], held_out: float, where: str, sample_bytes: int = SAMPLE_BYTES) -> Survey:
    """Read all documents once: fix the split and, with sample_bytes > 0, sample training documents.

    Raises:
        DataError: there are no documents, or all of them are equal, so that nothing can be held out.
    """
    threshold = int(held_out * 2.0**64)
    lowest, highest, count = 1 << 64, -1, 0
    outermost = b""
    sample = _Sample(sample_bytes)
    for document in documents:
        mark = document_hash(document)
        lowest = min(lowest, mark)
        if mark > highest:
            highest, outermost = mark, document
        count += 1
        if mark >= threshold and sample_bytes:
            sample.offer(mark, document)
    if count == 0:
        raise DataError("The corpus is empty", where=where, fix="Give files that hold text.")
    if lowest == highest:
        found = "one document" if count == 1 else f"the same document {count} times"
        raise DataError(
            f"The corpus holds {found}, so none can be held out to measure on",
            where=where,
            fix="Give more text: one big text file is cut into documents by itself, others count one a file or line.",
        )
    forced = True
    if threshold <= lowest:
        threshold = lowest + 1
    elif threshold > highest:
        threshold = highest
    else:
        forced = False
    kept = sample.documents()
    if forced:
        kept = [document for document in kept if document_hash(document) >= threshold]
    if sample_bytes and not kept:
        kept = [outermost]
    return Survey(threshold, forced, count, kept)
