"""Documents to token ids, fast: a word cache in front of the tokenizer, in worker processes.

GPT-2's pattern cuts text into words that BPE encodes one by one, and text repeats its words. So for byte-level BPE the
encoder finds the words itself and looks their ids up in a dictionary; only a word not seen before goes through the
tokenizer. On one core that encodes the standard library at about 18 MB/s where `encode_batch_fast` does 3.
The result is the same, token for token, because

* on ASCII text Python's `re` and the tokenizer agree on what letters, digits and spaces are;
* in other text, only *chunks* that end before an ASCII space, after a character that is surely no space, are cached.
  A word never runs from a non-space into a space, so no word is cut; and inside a chunk that is not ASCII the
  tokenizer itself finds the words, so that no two Unicode tables have to agree.

Any other tokenizer goes through `encode_batch_fast`. Workers are processes that read batches from a pipe: plain
`python -m`, so neither fork (unsafe after threads have started) nor multiprocessing's re-import of `__main__`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

CACHED_WORDS = 1 << 17
LONGEST_CACHED = 64
BATCH_BYTES = 1 << 20

# GPT-2's pattern for text that is all ASCII.
_WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
# Characters that are, or in some version of Unicode were, white space; and ranges around them for good measure.
_SPACES = r"\s\x1c-\x1f\x85\xa0\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff"
_CHUNKS = re.compile(rf".+?(?:(?<=[^{_SPACES}])(?=[ \t\n\r\f\v])|\Z)", re.ASCII | re.DOTALL)
_LINES = re.compile(rf".+?(?:(?<=[^{_SPACES}])(?=\n)|\Z)", re.ASCII | re.DOTALL)


class Encoder:
    """Encodes batches of documents with one tokenizer.

    Args:
        backend: tokenizer.json as text.
        separator: id that closes every document.
        wide: ids are written as uint32 instead of uint16.
    """

    def __init__(self, backend: str, separator: int, wide: bool) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(backend)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Text that spells a special token is text.
        self._tokenizer.encode_special_tokens = True
        self._type = np.dtype("<u4" if wide else "<u2")
        self._separator = np.array([separator], self._type).tobytes()
        self._cache = _WordCache(self._tokenizer, self._type) if encodes_word_by_word(backend) else None

    def encode(self, documents: list[bytes]) -> tuple[list[int], bytes]:
        """Token counts (with the separator) of the documents, and all their ids, little-endian."""
        texts = [document.decode() for document in documents]
        if self._cache is not None:
            encoded = [self._cache.encode(text) for text in texts]
        else:
            batch = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            encoded = [np.array(encoding.ids, self._type).tobytes() for encoding in batch]
        counts = [len(ids) // self._type.itemsize + 1 for ids in encoded]
        return counts, b"".join(part for ids in encoded for part in (ids, self._separator))


def encodes_word_by_word(backend: str) -> bool:
    """Whether a tokenizer.json is byte-level BPE with GPT-2's words and nothing before, after or at random."""
    description: dict[str, Any] = json.loads(backend)
    words = description.get("pre_tokenizer") or {}
    model = description.get("model") or {}
    return (
        description.get("normalizer") is None
        and words.get("type") == "ByteLevel"
        and words.get("add_prefix_space") is False
        and words.get("use_regex", True) is True
        and model.get("type") == "BPE"
        and not model.get("dropout")
        and all(token.get("special") for token in description.get("added_tokens") or [])
    )


class _WordCache(dict[str, bytes]):
    """Ids of words and chunks seen, as bytes; the tokenizer is asked about the others. Starts anew when full."""

    def __init__(self, tokenizer: Any, kind: np.dtype) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._type = kind

    def __missing__(self, word: str) -> bytes:
        if len(word) > LONGEST_CACHED:
            # Without offsets, which cost three times the encoding itself on long text.
            encoding = self._tokenizer.encode_batch_fast([word], add_special_tokens=False)[0]
            return np.array(encoding.ids, self._type).tobytes()
        ids = np.array(self._tokenizer.encode(word, add_special_tokens=False).ids, self._type).tobytes()
        if len(self) >= CACHED_WORDS:
            self.clear()
        self[word] = ids
        return ids

    def encode(self, text: str) -> bytes:
        look_up = self.__getitem__
        if text.isascii():
            return b"".join(map(look_up, _WORDS.findall(text)))
        parts: list[bytes] = []
        for line in _LINES.findall(text):
            pattern = _WORDS if line.isascii() else _CHUNKS
            parts.extend(map(look_up, pattern.findall(line)))
        return b"".join(parts)


class EncoderPool:
    """Encoders in `workers` processes (with one worker, in this process), used in order and with bounded memory."""

    def __init__(self, backend: str, separator: int, wide: bool, workers: int) -> None:
        self._settings = (backend, separator, wide)
        self._workers = workers
        self._children: list[subprocess.Popen[bytes]] = []
        self._local = threading.local()

    def encode(self, documents: Iterable[bytes]) -> Generator[tuple[list[bytes], list[int], bytes], None, None]:
        """Yield (documents, token counts, ids) batch by batch, in the order of the documents."""
        batches = _batches(documents)
        if self._workers <= 1:
            encoder = Encoder(*self._settings)
            for batch in batches:
                yield batch, *encoder.encode(batch)
            return
        waiting: deque[tuple[list[bytes], Future[tuple[list[int], bytes]]]] = deque()
        threads = ThreadPoolExecutor(self._workers, thread_name_prefix="encode")
        try:
            for batch in batches:
                waiting.append((batch, threads.submit(self._ask, batch)))
                if len(waiting) > 2 * self._workers:
                    done, future = waiting.popleft()
                    yield done, *future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, *future.result()
        finally:
            # Killing first makes threads that wait on a pipe return.
            for child in self._children:
                child.kill()
            threads.shutdown(cancel_futures=True)
            for child in self._children:
                for pipe in (child.stdin, child.stdout):
                    if pipe is not None:
                        with contextlib.suppress(OSError):
                            pipe.close()
                child.wait()
            self._children.clear()

    def _ask(self, batch: list[bytes]) -> tuple[list[int], bytes]:
        child = getattr(self._local, "child", None)
        if child is None:
            child = self._local.child = self._start()
            self._children.append(child)
            backend, separator, wide = self._settings
            _send(child.stdin, struct.pack("<IB", separator, wide), backend.encode())
        try:
            _send(child.stdin, *batch)
            counts, ids = _receive(child.stdout)
        except (OSError, EOFError, ValueError) as error:
            raise RuntimeError(f"a tokenizing process ended early (exit code {child.poll()})") from error
        return np.frombuffer(counts, "<i8").tolist(), ids

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        # The tokenizer's own threads would only get in each other's way: there is a process a core already.
        environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-P", "-m", "thalweg.data.encoder"]
        # A process group of its own: Ctrl-C reaches the parent only, which then ends its children.
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0
        )


def _batches(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _send(pipe: IO[bytes] | None, *parts: bytes) -> None:
    """One message: the number of parts, their lengths, the parts."""
    assert pipe is not None
    pipe.write(struct.pack(f"<I{len(parts)}I", len(parts), *map(len, parts)) + b"".join(parts))
    pipe.flush()


def _receive(pipe: IO[bytes] | None) -> list[bytes]:
    assert pipe is not None
    (count,) = struct.unpack("<I", _exactly(pipe, 4))
    lengths = struct.unpack(f"<{count}I", _exactly(pipe, 4 * count))
    return [_exactly(pipe, length) for length in lengths]


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _serve() -> None:
    """A worker: settings first, then batches until the pipe closes."""
    settings, backend = _receive(sys.stdin.buffer)
    encoder = Encoder(backend.decode(), *struct.unpack("<IB", settings))
    while True:
        try:
            batch = _receive(sys.stdin.buffer)
        except EOFError:
            return
        counts, ids = encoder.encode(batch)
        _send(sys.stdout.buffer, np.array(counts, "<i8").tobytes(), ids)


if __name__ == "__main__":
    _serve()
