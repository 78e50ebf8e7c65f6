from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from thalweg.data import TokenStore
from thalweg.data.corpora import open_corpus
from thalweg.data.splitting import document_hash
from thalweg.data.writer import SplitWriter
from thalweg.errors import DataError


def test_tokens_decode_to_the_documents_in_order(store: TokenStore, folder: Path) -> None:
    threshold = int(0.2 * 2**64)
    documents = [document.decode() for document in open_corpus(folder).documents()]
    sides = {
        "train": [text for text in documents if document_hash(text.encode()) >= threshold],
        "held_out": [text for text in documents if document_hash(text.encode()) < threshold],
    }
    assert len(sides["held_out"]) >= 2
    for split, texts in zip((store.train, store.held_out), sides.values(), strict=True):
        offsets, sizes = split.documents()
        assert split.document_count == len(texts) == len(sizes) == len(offsets) - 1
        assert offsets[0] == 0
        assert offsets[-1] == split.token_count
        assert split.byte_count == sum(sizes) == sum(len(text.encode()) for text in texts)
        for text, start, stop, size in zip(texts, offsets[:-1], offsets[1:], sizes, strict=True):
            tokens = split.read(int(start), int(stop))
            assert tokens.dtype == np.int64
            assert tokens[-1] == store.tokenizer.eos_token_id
            assert store.tokenizer.decode(tokens[:-1]) == text
            assert size == len(text.encode())


def test_reads_cross_shards(store: TokenStore) -> None:
    assert len(store.manifest["splits"]["train"]["shards"]) > 3
    whole = store.train.read(0, store.train.token_count)
    assert len(whole) == store.train.token_count
    for start, stop in ((0, 0), (499, 501), (499, 500), (500, 1000), (3, 1777)):
        assert np.array_equal(store.train.read(start, stop), whole[start:stop])
    for start, stop in ((-1, 3), (3, 2), (0, store.train.token_count + 1)):
        with pytest.raises(IndexError):
            store.train.read(start, stop)


def test_the_manifest_says_what_is_there(store: TokenStore) -> None:
    assert store.manifest["type"] == "<u2"
    assert store.vocab_size == len(store.tokenizer) <= 300
    assert store.manifest["options"] == {"field": "text", "held_out": 0.2, "shard_tokens": 500}
    assert store.manifest["warnings"] == []
    store.verify()
    assert TokenStore(store.folder).train.read(5, 9).tolist() == store.train.read(5, 9).tolist()


def test_a_flipped_byte_is_found_by_verify(store: TokenStore) -> None:
    shard = store.folder / "train-00001.tokens"
    raw = bytearray(shard.read_bytes())
    raw[77] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DataError, match=r"train-00001.tokens has other contents"):
        TokenStore(store.folder).verify()


def test_damage_is_found_on_opening(store: TokenStore, tmp_path: Path) -> None:
    shard = store.folder / "train-00001.tokens"
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-2])
    with pytest.raises(DataError, match=r"train-00001\.tokens has 998 bytes instead of 1000"):
        TokenStore(store.folder)
    shard.unlink()
    with pytest.raises(DataError, match=r"train-00001.tokens is missing"):
        TokenStore(store.folder)
    shard.write_bytes(raw)
    manifest = store.folder / "manifest.json"
    good = json.loads(manifest.read_text())
    for bad, message in (
        ("{", "manifest cannot be read"),
        (json.dumps({**good, "format": 99}), "format is 99"),
        (json.dumps({key: good[key] for key in good if key != "splits"}), "lacks 'splits'"),
        (json.dumps({**good, "splits": {**good["splits"], "held_out": []}}), "manifest lacks"),
    ):
        manifest.write_text(bad)
        with pytest.raises(DataError, match=message):
            TokenStore(store.folder)
    with pytest.raises(DataError, match="no token store"):
        TokenStore(tmp_path / "nowhere")


def test_shards_are_filled_to_the_last_token(tmp_path: Path) -> None:
    writer = SplitWriter(tmp_path, "train", item_bytes=4, shard_tokens=3)
    for first, counts in ((0, [2, 5]), (7, [2])):
        ids = np.arange(first, first + sum(counts), dtype="<u4")
        writer.add(memoryview(ids).cast("B"), np.array(counts), np.array(counts) * 10)
    entry = writer.finish()
    assert [shard["tokens"] for shard in entry["shards"]] == [3, 3, 3]
    assert (entry["tokens"], entry["bytes"], entry["documents"]) == (9, 90, 3)
    joined = b"".join((tmp_path / shard["file"]).read_bytes() for shard in entry["shards"])
    assert np.frombuffer(joined, "<u4").tolist() == list(range(9))
    assert np.fromfile(tmp_path / "train.offsets", "<i8").tolist() == [0, 2, 7, 9]
