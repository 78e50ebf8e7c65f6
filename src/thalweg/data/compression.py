"""Streams out of gzip and Zstandard files, that notice when the file is cut short."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import IO, Any

import zstandard

COMPRESSIONS = (".gz", ".zst")
# What reading a corrupt or truncated stream raises.
CORRUPT = (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile)


def decompress(raw: IO[bytes], compression: str) -> IO[bytes]:
    """A stream of what is in the compressed stream `raw`; `compression` is one of COMPRESSIONS or ""."""
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if compression == ".zst":
        return io.BufferedReader(_ZstdReader(raw), 1 << 18)
    return raw


class _ZstdReader(io.RawIOBase):
    """Zstandard frames as a stream. `zstandard.stream_reader` takes a truncated frame for a finished one; this
    one raises EOFError. Input goes in 4 KiB at a time, which bounds what a hostile frame can expand to."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame: Any = None
        self._left = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._left or self._raw.read(4096)
            self._left = b""
            if not chunk:
                if self._frame is not None:
                    raise EOFError("the last zstd frame does not end")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
            self._ready = memoryview(self._frame.decompress(chunk))
            if self._frame.eof:
                self._left, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
