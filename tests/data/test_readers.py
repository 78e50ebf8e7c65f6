from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from thalweg.data import readers
from thalweg.data.corpora import open_corpus
from thalweg.data.readers import PIECE, WHOLE, classify, cut
from thalweg.data.tally import Tally
from thalweg.errors import DataError


def documents(path: Path, field: str = "text", tally: Tally | None = None) -> list[bytes]:
    return list(open_corpus(path, field).documents(tally))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", (".txt", "")),
        ("A.TXT.GZ", (".txt", ".gz")),
        ("a.jsonl.zst", (".jsonl", ".zst")),
        ("a.parquet", (".parquet", "")),
        ("a.md", (".md", "")),
        ("a.tar.gz", None),
        ("a.gz", None),
        ("txt", None),
        ("a.csv", None),
    ],
)
def test_classify(name: str, expected: tuple[str, str] | None) -> None:
    assert classify(name) == expected


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(4, 40))
def test_pieces_join_to_the_input_and_are_bounded(head: bytes, rest: bytes, piece: int) -> None:
    original = readers.PIECE
    readers.PIECE = piece
    try:
        pieces = list(cut(head, io.BytesIO(rest)))
    finally:
        readers.PIECE = original
    assert b"".join(pieces) == head + rest
    assert all(0 < len(part) <= piece for part in pieces)


@given(st.text(max_size=400), st.integers(4, 40))
def test_no_character_is_cut(text: str, piece: int) -> None:
    original = readers.PIECE
    readers.PIECE = piece
    try:
        pieces = [part.decode() for part in cut(text.encode())]
    finally:
        readers.PIECE = original
    assert "".join(pieces) == text


def test_pieces_end_at_line_ends() -> None:
    text = b"".join(b"line %d\n" % number for number in range(20_000))
    pieces = list(cut(text))
    assert len(pieces) > len(text) // PIECE
    assert all(piece.endswith(b"\n") for piece in pieces)


def test_a_file_is_one_document_up_to_a_mebibyte_unless_it_is_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\n" * (WHOLE // 2))
    assert len(documents(tmp_path)) == WHOLE // PIECE
    (tmp_path / "b.txt").write_bytes(b"b\n" * (WHOLE // 2 + 1))
    sizes = [len(document) for document in documents(tmp_path)]
    assert sizes == [WHOLE] + [PIECE] * (WHOLE // PIECE) + [2]


TEXTS = ["first", "second\nline", "dritté 日本"]


def write_as(path: Path, kind: str, compression: str) -> Path:
    if kind == ".jsonl":
        raw = "".join(json.dumps({"id": 1, "text": text}) + "\n\n" for text in TEXTS).encode()
    elif kind == ".parquet":
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": TEXTS}), sink, row_group_size=2)
        raw = sink.getvalue()
    else:
        raw = "".join(TEXTS).encode()
    if compression == ".gz":
        raw = gzip.compress(raw)
    elif compression == ".zst":
        half = len(raw) // 2
        raw = zstandard.compress(raw[:half]) + zstandard.compress(raw[half:])
    target = path / f"file{kind}{compression}"
    target.write_bytes(raw)
    return target


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".md", ".py", ".jsonl", ".parquet"])
def test_every_format_and_compression(tmp_path: Path, kind: str, compression: str) -> None:
    file = write_as(tmp_path, kind, compression)
    expected = TEXTS if kind in (".jsonl", ".parquet") else ["".join(TEXTS)]
    seen: list[int] = []
    corpus = open_corpus(file)
    assert [document.decode() for document in corpus.documents(advance=seen.append)] == expected
    assert sum(seen) == file.stat().st_size == corpus.size


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "flipped"])
def test_corrupt_compression_is_a_data_error(tmp_path: Path, kind: str, compression: str, damage: str) -> None:
    file = write_as(tmp_path, kind, compression)
    raw = bytearray(file.read_bytes())
    if damage == "truncated":
        raw = raw[:-3]
    elif damage == "garbage":
        raw = bytearray(b"this is no archive")
    else:
        raw[0] ^= 0xFF
    file.write_bytes(raw)
    with pytest.raises(DataError, match="corrupt") as caught:
        documents(file)
    assert caught.value.where == str(file)


def test_corrupt_parquet(tmp_path: Path) -> None:
    file = write_as(tmp_path, ".parquet", "")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="corrupt") as caught:
        documents(file)
    assert caught.value.where == str(file)
    with pytest.raises(DataError, match="no column 'body': its columns are id, text"):
        documents(write_as(tmp_path, ".parquet", ""), field="body")
    with pytest.raises(DataError, match="'id' holds int, not text") as caught:
        documents(write_as(tmp_path, ".parquet", ""), field="id")
    assert caught.value.where.endswith("file.parquet, row 0")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "not valid JSON"),
        ('{"body": "a", "id": 3}', "no field 'text': its keys are body, id"),
        ("[1, 2]", "no field 'text': not an object"),
        ('{"text": 7}', "'text' holds int, not text"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_bad_json_lines_say_where(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        documents(file)
    assert caught.value.where == f"{file}:3"


def test_a_line_beyond_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST_LINE", 100)
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "a" * 200}))
    with pytest.raises(DataError, match="longer than"):
        documents(file)


def test_oddities_are_counted_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 and \xff")
    (tmp_path / "b.txt").write_text("fine \ufffd")
    (tmp_path / "c.jsonl").write_text('{"text": null}\n{"text": "half \\ud800 pair"}\n{"text": ""}\n')
    tally = Tally()
    assert [document.decode() for document in documents(tmp_path, tally=tally)] == [
        "caf\ufffd and \ufffd",
        "fine \ufffd",
        "half \ufffd pair",
    ]
    assert tally.counts == {"not_utf8": 1, "null_field": 1, "lone_surrogates": 1}
    assert tally.first["not_utf8"] == "a.txt"
    assert tally.first["lone_surrogates"] == "c.jsonl:2"
    assert [warning["kind"] for warning in tally.warnings()] == ["lone_surrogates", "not_utf8", "null_field"]


def test_byte_order_marks_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "there"}\n')
    assert documents(tmp_path) == [b"hello", b"there"]


def test_a_long_json_text_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * (WHOLE + 1)}))
    assert [len(document) for document in documents(tmp_path)] == [PIECE] * (WHOLE // PIECE) + [1]


def test_a_file_that_vanished_is_a_data_error(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("here")
    corpus = open_corpus(file)
    os.unlink(file)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(corpus.documents())
    with pytest.raises(DataError, match="cannot be read: No such file"):
        corpus.content()
