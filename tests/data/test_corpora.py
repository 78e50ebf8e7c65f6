from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from thalweg.data.corpora import AT_REST, open_corpus
from thalweg.errors import DataError


def names(path: Path) -> list[str]:
    return [source.relative for source in open_corpus(path).files]


def test_the_default_corpus_is_the_standard_library() -> None:
    corpus = open_corpus("stdlib")
    relative = [source.relative for source in corpus.files]
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(relative)
    assert relative == sorted(relative, key=os.fsencode)
    parts = {part for name in relative for part in name.split("/")}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert all(name.endswith(".py") for name in relative)
    assert 8e6 < corpus.size < 30e6
    assert corpus.oddities.counts == {}


def test_a_folder_is_listed_in_order_without_hidden_unknown_and_linked(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a.txt", ".hidden.txt", ".git/x.txt", "picture.png", "x.txt/inner.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
    # A directory named x.txt is a directory.
    assert names(tmp_path) == ["a.txt", "a/z.md", "b.txt", "link.txt", "x.txt/inner.py"]
    assert open_corpus(tmp_path).oddities.counts == {"linked_folder": 1, "unknown_extension": 1}


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such corpus") as caught:
        open_corpus(tmp_path / "missing")
    assert "stdlib" in caught.value.fix
    with pytest.raises(DataError, match="no file that can be read"):
        open_corpus(tmp_path)
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(DataError, match="no file that can be read"):
        open_corpus(tmp_path)
    with pytest.raises(DataError, match=r"end in \.docx are not read"):
        open_corpus(tmp_path / "a.docx")


def test_unreadable_files_are_data_errors_not_hangs(tmp_path: Path) -> None:
    dangling = tmp_path / "gone.txt"
    dangling.symlink_to(tmp_path / "nowhere.txt")
    for corpus in (dangling, tmp_path):
        with pytest.raises(DataError, match="cannot be read: No such file") as caught:
            open_corpus(corpus)
        assert caught.value.where == str(dangling)
    dangling.unlink()
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match="not a regular file"):
        open_corpus(tmp_path)


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x")
    corpus = open_corpus(tmp_path)

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "a.txt"))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        list(corpus.documents())
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        corpus.content()


def test_content_follows_names_and_bytes_and_fingerprint_follows_times(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    content, fingerprint = open_corpus(tmp_path).content(), open_corpus(tmp_path).fingerprint()
    os.utime(file, ns=(1, 1))
    assert open_corpus(tmp_path).content() == content
    assert open_corpus(tmp_path).fingerprint() != fingerprint
    file.write_text("two")
    assert open_corpus(tmp_path).content() != content
    file.write_text("one")
    assert open_corpus(tmp_path).content() == content
    file.rename(tmp_path / "b.txt")
    assert open_corpus(tmp_path).content() != content


def test_a_file_just_written_is_not_at_rest(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    corpus = open_corpus(tmp_path)
    assert not corpus.at_rest()
    assert corpus.at_rest(time.time_ns() + 2 * AT_REST)
