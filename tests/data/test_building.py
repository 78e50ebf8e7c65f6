from __future__ import annotations

import errno
import json
import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thalweg.data import TokenStore, WindowSampler, building, encoder, prepare
from thalweg.data.locking import locked
from thalweg.data.tokenization import train_bpe
from thalweg.errors import DataError

OPTIONS = {"tokenizer": "bpe:300", "held_out": 0.2, "progress": False}


def stamp(store: TokenStore) -> int:
    """Changes when the store is built anew."""
    return (store.folder / "manifest.json").stat().st_mtime_ns


def settle(folder: Path) -> None:
    """Make all files look old (their change time stays)."""
    for path in folder.rglob("*.txt"):
        os.utime(path, ns=(10**18, 10**18))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in (cache / "stores").iterdir() if path.name.startswith(".")]


def test_the_same_inputs_are_not_tokenized_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    first = prepare(folder, cache=cache, **OPTIONS)

    def refuse(*arguments: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(building, "_build", refuse)
    settle(folder)
    again = prepare(str(folder), cache=cache, **OPTIONS)
    assert again.folder == first.folder
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder, copy], check=True)
    assert prepare(copy, cache=cache, **OPTIONS).folder == first.folder


def test_an_unchanged_fingerprint_spares_reading(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from thalweg.data.corpora import Corpus

    cache = tmp_path / "cache"
    monkeypatch.setattr("thalweg.data.corpora.AT_REST", -(10**12))
    first = prepare(folder, cache=cache, **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "content", lambda *arguments: pytest.fail("read again"))
        assert prepare(folder, cache=cache, **OPTIONS).folder == first.folder
    (folder / "00.txt").write_text("something else")
    assert prepare(folder, cache=cache, **OPTIONS).folder != first.folder


def test_a_file_changed_within_a_clock_tick_is_seen(folder: Path, tmp_path: Path) -> None:
    """Same name, size and modification time: only the rule of rest (and the change time) can tell."""
    cache = tmp_path / "cache"
    file = folder / "00.txt"
    size, when = file.stat().st_size, file.stat().st_mtime_ns
    first = prepare(folder, cache=cache, **OPTIONS)
    file.write_bytes(b"z" * size)
    os.utime(file, ns=(when, when))
    assert prepare(folder, cache=cache, **OPTIONS).folder != first.folder


def test_anything_changed_is_another_store(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    seen = {prepare(folder, cache=cache, **OPTIONS).folder}
    for change in ({"tokenizer": "bpe:290"}, {"held_out": 0.3}, {"field": "body"}, {"shard_tokens": 100}):
        seen.add(prepare(folder, cache=cache, **{**OPTIONS, **change}).folder)
    (folder / "new.txt").write_text("a new document")
    seen.add(prepare(folder, cache=cache, **OPTIONS).folder)
    assert len(seen) == 6


def test_a_tokenizer_folder(folder: Path, tmp_path: Path) -> None:
    train_bpe([b"other text than the corpus"], 280).save_pretrained(tmp_path / "tokenizer")
    options = {**OPTIONS, "tokenizer": str(tmp_path / "tokenizer"), "cache": tmp_path / "cache"}
    first = prepare(folder, **options)
    assert first.vocab_size <= 280
    text = (folder / "00.txt").read_text(encoding="utf-8")
    split = first.train if text in first.tokenizer.decode(first.train.read(0, first.train.token_count)) else None
    assert split is first.train or text in first.tokenizer.decode(first.held_out.read(0, first.held_out.token_count))
    train_bpe([b"yet another text"], 270).save_pretrained(tmp_path / "tokenizer")
    assert prepare(folder, **options).folder != first.folder


def test_stores_do_not_depend_on_the_number_of_workers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "BATCH_BYTES", 1000)
    stores = [prepare(folder, cache=tmp_path / f"cache{workers}", workers=workers, **OPTIONS) for workers in (1, 2, 4)]
    trees = [tree(store.folder) for store in stores]
    assert trees[0] == trees[1] == trees[2]
    assert len(trees[0]) >= 8


def test_adding_documents_moves_none_to_the_other_side(folder: Path, tmp_path: Path) -> None:
    def held(store: TokenStore) -> set[str]:
        text = store.tokenizer.decode(store.held_out.read(0, store.held_out.token_count))
        return set(text.split("<|endoftext|>")) - {""}

    cache = tmp_path / "cache"
    before = held(prepare(folder, cache=cache, **OPTIONS))
    texts = {path.read_text("utf-8") for path in folder.rglob("*.txt")}
    for number in range(100, 160):
        (folder / f"{number}.txt").write_text(f"document {number} is new")
    after = held(prepare(folder, cache=cache, **OPTIONS))
    assert before
    assert after & texts == before
    assert len(after) > len(before)


def test_duplicates_share_a_side(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {number % 20}"}) for number in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    store = prepare(tmp_path / "a.jsonl", cache=tmp_path / "cache", **OPTIONS)
    assert store.held_out.document_count % 10 == 0
    assert store.held_out.document_count + store.train.document_count == 200


def test_one_big_text_file_works(tmp_path: Path) -> None:
    chooser = random.Random(0)
    file = tmp_path / "big.txt"
    file.write_text("".join(f"{chooser.random()} line\n" for _ in range(10_000)))
    store = prepare(file, tokenizer="bpe:300", cache=tmp_path / "cache", progress=False)
    assert store.train.byte_count + store.held_out.byte_count == file.stat().st_size
    assert store.held_out.document_count >= 1
    WindowSampler(store.train, 64, 16, seed=0).batch(0)


def test_small_corpora_fall_back_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"document {name}")
    (tmp_path / "c.bin").write_text("x")
    with caplog.at_level(logging.WARNING, "thalweg.data"):
        store = prepare(tmp_path, tokenizer="bpe:300", held_out=1e-9, cache=tmp_path / ".cache", progress=False)
    assert (store.train.document_count, store.held_out.document_count) == (1, 1)
    assert [warning["kind"] for warning in store.manifest["warnings"]] == ["forced_split", "unknown_extension"]
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b""}, "is empty"),
        ({"a.txt": b"", "b.py": b""}, "is empty"),
        ({"a.txt": b"only this"}, "one document"),
        ({"a.jsonl": b'{"text": "a"}\n{"text": }\n'}, "not valid JSON"),
        ({"a.txt": b"x", "b.txt.gz": b"y"}, "corrupt"),
    ],
)
def test_bad_corpora_leave_nothing_behind(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    cache = tmp_path / ".cache"
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, cache=cache, **OPTIONS)
    assert list((cache / "stores").iterdir()) == []


def test_bad_options(folder: Path, tmp_path: Path) -> None:
    for held_out in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(DataError, match="between 0 and 1"):
            prepare(folder, held_out=held_out, cache=tmp_path)
    with pytest.raises(DataError, match="at least one worker"):
        prepare(folder, workers=0, cache=tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match="cache cannot be written"):
        prepare(folder, cache=blocked, **OPTIONS)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    cache = tmp_path / "cache"

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("thalweg.data.writer._sync", full)
        with pytest.raises(DataError, match="disk is full") as caught:
            prepare(folder, cache=cache, workers=workers, **OPTIONS)
        assert "THALWEG_CACHE" in caught.value.fix
    assert list((cache / "stores").iterdir()) == []
    assert prepare(folder, cache=cache, **OPTIONS).train.token_count > 0


def test_a_damaged_store_is_built_again_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    first = prepare(folder, cache=cache, **OPTIONS)
    good = tree(first.folder)
    shard = first.folder / "train-00000.tokens"
    shard.write_bytes(shard.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING, "thalweg.data"):
        again = prepare(folder, cache=cache, **OPTIONS)
    assert "damaged" in caplog.text
    assert tree(again.folder) == good
    assert leftovers(cache) == []


def test_a_corpus_that_changes_meanwhile(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = building.train_bpe

    def meddle(*arguments: object) -> object:
        (folder / "00.txt").write_text("changed under way")
        return train(*arguments)

    monkeypatch.setattr(building, "train_bpe", meddle)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(folder, cache=tmp_path / "cache", **OPTIONS)
    assert list((tmp_path / "cache" / "stores").iterdir()) == []


_BUILD = """
import sys
from pathlib import Path
from thalweg.data import prepare
store = prepare(sys.argv[1], tokenizer="bpe:300", held_out=0.2, cache=Path(sys.argv[2]), progress=False, workers=2)
print(store.folder.name, store.train.token_count)
"""


def test_two_processes_may_build_the_same_store(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", _BUILD, folder, cache]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert said[0] == said[1] != ""
    store = prepare(folder, cache=cache, **OPTIONS)
    store.verify()
    assert said[0].split() == [store.folder.name, str(store.train.token_count)]
    assert leftovers(cache) == []


def test_a_killed_build_is_no_store_and_is_cleaned_up(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    stopped = "import thalweg.data.building as b, time\n"
    stopped += "b._write_manifest = lambda *a: (print('here', flush=True), time.sleep(60))\n"
    process = subprocess.Popen(
        [sys.executable, "-c", stopped + _BUILD, folder, cache], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    alive = leftovers(cache)
    assert len(alive) == 1
    # Another store is built meanwhile: the living build's folder stays.
    prepare(folder, cache=cache, **{**OPTIONS, "held_out": 0.3})
    assert leftovers(cache) == alive
    process.kill()
    process.wait()
    process.stdout.close()
    assert leftovers(cache) == alive
    prepare(folder, cache=cache, **{**OPTIONS, "held_out": 0.4})
    assert leftovers(cache) == []
    assert prepare(folder, cache=cache, **OPTIONS).train.token_count > 0


def test_the_lock_is_exclusive(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as first, locked(tmp_path / "lock", wait=False) as second:
        assert (first, second) == (True, False)
    with locked(tmp_path / "lock", wait=False) as third:
        assert third


def test_the_cache_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path))
    assert building.cache_folder() == tmp_path
    assert building.cache_folder(tmp_path / "x") == tmp_path / "x"
    monkeypatch.delenv("THALWEG_CACHE")
    assert building.cache_folder() == Path.home() / ".cache" / "thalweg"


def test_progress_goes_to_stderr_and_only_when_wanted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("thalweg.data.progress._QUIET", 0.0)
    prepare(folder, cache=tmp_path / "a", **OPTIONS)
    prepare(folder, cache=tmp_path / "b", **{**OPTIONS, "progress": True})
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    prepare(folder, cache=tmp_path / "c", **OPTIONS)
    assert capfd.readouterr() == ("", "")
    prepare(folder, cache=tmp_path / "d", **{**OPTIONS, "progress": True})
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "tokenizing" in shown.err


def test_a_known_store_opens_quickly(folder: Path, tmp_path: Path) -> None:
    prepare(folder, cache=tmp_path / "cache", **OPTIONS)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        prepare(folder, cache=tmp_path / "cache", **OPTIONS)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.1
