"""From a file to documents: decompress, parse and cut, always in bounded memory.

A document is UTF-8 `bytes`: the splitting hash, the byte count and the pipe to the encoder all want bytes, and
a valid text file is then never decoded and encoded again.

How text is cut. A text file (`.txt`, `.md`, `.py`) of at most WHOLE bytes is one document, so that an article
never lies on both sides of the held-out split. A longer one is cut at line ends into pieces of at most PIECE bytes:
memory stays bounded and one big file still splits into training and held-out parts. A file that is the whole corpus is
always cut, for the same reason. A JSON or Parquet text longer than WHOLE is cut too. Pieces joined give back the
file exactly.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from thalweg.data.compression import COMPRESSIONS, CORRUPT, decompress
from thalweg.data.tally import Tally
from thalweg.errors import DataError

WHOLE = 1 << 20
PIECE = 1 << 14
LONGEST_LINE = 1 << 26
TEXT_FORMATS = (".txt", ".md", ".py")
FORMATS = (*TEXT_FORMATS, ".jsonl", ".parquet")
_BLOCK = 1 << 18
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus.

    Attributes:
        path: where it is.
        relative: its name inside the corpus, with forward slashes.
        format: one of FORMATS. compression: one of COMPRESSIONS, or "".
        size, modified, changed: bytes, mtime and ctime in nanoseconds when it was listed.
    """

    path: Path
    relative: str
    format: str
    compression: str
    size: int
    modified: int
    changed: int


def classify(name: str) -> tuple[str, str] | None:
    """(format, compression) of a file name, or None when its extension is not one that is read."""
    stem, compression = name.lower(), ""
    for suffix in COMPRESSIONS:
        if stem.endswith(suffix):
            stem, compression = stem.removesuffix(suffix), suffix
    for suffix in FORMATS:
        if stem.endswith(suffix):
            return suffix, compression
    return None


def read_documents(
    source: SourceFile, field: str, alone: bool, tally: Tally, advance: Callable[[int], None]
) -> Iterator[bytes]:
    """Yield the documents of one file as UTF-8 bytes.

    Args:
        field: the key or column that holds the text (.jsonl, .parquet).
        alone: the file is the whole corpus, so that text is cut whatever its size.
        advance: called with the number of bytes read from disk since the last call.

    Raises:
        DataError: the file cannot be read, is corrupt, or does not hold `field` as text.
    """
    try:
        with open(source.path, "rb") as raw:
            reported = 0
            for document in _parse(source, raw, field, alone, tally):
                position = raw.tell()
                if position != reported:
                    advance(position - reported)
                    reported = position
                if document:
                    yield document
            advance(source.size - reported)
    except CORRUPT as error:
        raise DataError(
            f"The file is corrupt or cut short: {error}",
            where=str(source.path),
            fix="Write or download the file again, or take it out of the corpus.",
        ) from error
    except OSError as error:
        raise DataError(
            f"The file cannot be read: {error.strerror or error}",
            where=str(source.path),
            fix="Check that it exists and that you may read it, or take it out of the corpus.",
        ) from error


def _parse(source: SourceFile, raw: IO[bytes], field: str, alone: bool, tally: Tally) -> Iterator[bytes]:
    stream = decompress(raw, source.compression)
    if source.format == ".parquet":
        return _parquet(source, stream, field, tally)
    if source.format == ".jsonl":
        return _json_lines(source, stream, field, tally)
    return _text(source, stream, alone, tally)


def _valid(document: bytes, where: str, tally: Tally) -> bytes:
    try:
        document.decode()
    except UnicodeDecodeError:
        tally.add_once("not_utf8", where)
        return document.decode("utf-8", "replace").encode()
    return document


def _text(source: SourceFile, stream: IO[bytes], alone: bool, tally: Tally) -> Iterator[bytes]:
    head = stream.read(WHOLE + 1).removeprefix(_BYTE_ORDER_MARK)
    pieces: Iterator[bytes]
    if len(head) > WHOLE or alone:
        pieces = cut(head, stream)
    else:
        pieces = iter((head,))
    for piece in pieces:
        yield _valid(piece, source.relative, tally)


def cut(head: bytes, stream: IO[bytes] | None = None) -> Iterator[bytes]:
    """Cut text (`head` and what follows in `stream`) into pieces of at most PIECE bytes, after a line end where
    there is one, else between two characters. Joined, the pieces are the input."""
    buffer, start, more = head, 0, stream is not None
    while True:
        while more and len(buffer) - start <= PIECE:
            block = stream.read(_BLOCK) if stream is not None else b""
            more = bool(block)
            buffer, start = buffer[start:] + block, 0
        if len(buffer) - start <= PIECE:
            break
        end = buffer.rfind(b"\n", start, start + PIECE) + 1
        if end == 0:
            end = start + PIECE
            # At most three bytes back: a UTF-8 character has at most three continuation bytes (10xxxxxx).
            for back in range(4):
                if buffer[end - back] & 0xC0 != 0x80:
                    end -= back
                    break
        yield buffer[start:end]
        start = end
    if start < len(buffer):
        yield buffer[start:]


def from_string(text: str, where: str, tally: Tally) -> Iterator[bytes]:
    """Documents of a text from JSON, Parquet or the hub: cut when longer than WHOLE, always valid UTF-8."""
    try:
        document = text.encode()
    except UnicodeEncodeError:
        tally.add("lone_surrogates", where)
        document = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    return cut(document) if len(document) > WHOLE else iter((document,))


def _json_lines(source: SourceFile, stream: IO[bytes], field: str, tally: Tally) -> Iterator[bytes]:
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        where = f"{source.path}:{number}"
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"The line is longer than {LONGEST_LINE >> 20} MiB",
                where=where,
                fix="Put one document on each line, or store long texts as .txt files.",
            )
        if not line.strip():
            continue
        text = _json_text(line, number, source, field, where, tally)
        if text is None:
            tally.add("null_field", f"{source.relative}:{number}")
        else:
            yield from from_string(text, f"{source.relative}:{number}", tally)


def _json_text(line: bytes, number: int, source: SourceFile, field: str, where: str, tally: Tally) -> str | None:
    if number == 1:
        line = line.removeprefix(_BYTE_ORDER_MARK)
    try:
        record = json.loads(_valid(line, source.relative, tally))
    except (ValueError, RecursionError) as error:
        raise DataError(f"The line is not valid JSON: {error}", where=where, fix="Mend or remove the line.") from error
    if not isinstance(record, dict) or field not in record:
        found = f"its keys are {', '.join(sorted(record)) or '(none)'}" if isinstance(record, dict) else "not an object"
        raise DataError(
            f"The line has no field {field!r}: {found}",
            where=where,
            fix="Name the field that holds the text (field=...).",
        )
    return check_text(record[field], field, where)


def check_text(value: Any, field: str, where: str) -> str | None:
    """`value` if it is text or None; DataError if it is anything else."""
    if value is None or isinstance(value, str):
        return value
    raise DataError(
        f"The field {field!r} holds {type(value).__name__}, not text",
        where=where,
        fix="Name the field that holds the text (field=...).",
    )


def _parquet(source: SourceFile, stream: IO[bytes], field: str, tally: Tally) -> Iterator[bytes]:
    import pyarrow

    try:
        if not source.compression:
            yield from _parquet_rows(source, stream, field, tally)
            return
        # Parquet is read from its end, so a compressed one has to be unpacked somewhere first.
        with tempfile.TemporaryFile() as unpacked:
            while block := stream.read(_BLOCK):
                unpacked.write(block)
            unpacked.seek(0)
            yield from _parquet_rows(source, unpacked, field, tally)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"The Parquet file is corrupt: {error}",
            where=str(source.path),
            fix="Write or download the file again, or take it out of the corpus.",
        ) from error


def _parquet_rows(source: SourceFile, stream: IO[bytes], field: str, tally: Tally) -> Iterator[bytes]:
    import pyarrow.parquet

    # Buffered reading of column chunks, page by page: a row group may be larger than memory.
    table = pyarrow.parquet.ParquetFile(stream, buffer_size=_BLOCK, pre_buffer=False)
    names = table.schema_arrow.names
    if field not in names:
        raise DataError(
            f"The file has no column {field!r}: its columns are {', '.join(names)}",
            where=str(source.path),
            fix="Name the column that holds the text (field=...).",
        )
    row = 0
    for batch in table.iter_batches(batch_size=64, columns=[field], use_threads=False):
        for value in batch.column(0):
            text = check_text(value.as_py(), field, f"{source.path}, row {row}")
            if text is None:
                tally.add("null_field", f"{source.relative}, row {row}")
            else:
                yield from from_string(text, f"{source.relative}, row {row}", tally)
            row += 1
