from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from thalweg.data import prepare, remote
from thalweg.errors import DataError

OPTIONS = {"tokenizer": "bpe:300", "held_out": 0.2, "progress": False}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A hub that is no network: what it was asked for, and what it answers."""
    state: dict[str, object] = {"revision": "abc", "rows": [{"text": f"row {number}"} for number in range(50)]}

    def load_dataset(*arguments: object, **options: object) -> Iterator[object]:
        state["asked"] = (arguments, options)
        if isinstance(state["rows"], Exception):
            raise state["rows"]
        return iter(state["rows"])

    def revision(repository: str) -> str:
        if state["revision"] is None:
            raise ConnectionError("no route to the hub")
        return str(state["revision"])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(remote, "_current_revision", revision)
    return state


def test_a_data_set_streams_at_its_revision(hub: dict[str, object], tmp_path: Path) -> None:
    first = prepare("hf:owner/name:english", cache=tmp_path, **OPTIONS)
    assert hub["asked"] == (("owner/name", "english"), {"split": "train", "revision": "abc", "streaming": True})
    assert first.train.document_count + first.held_out.document_count == 50
    # Offline, and with a hub that would refuse: the store is found by the revision seen before.
    hub["revision"], hub["rows"] = None, ConnectionError("no route to the hub")
    assert prepare("hf:owner/name:english", cache=tmp_path, **OPTIONS).folder == first.folder
    with pytest.raises(DataError, match="no route to the hub"):
        prepare("hf:owner/other", cache=tmp_path, **OPTIONS)


def test_a_new_revision_is_a_new_store(hub: dict[str, object], tmp_path: Path) -> None:
    first = prepare("hf:owner/name", cache=tmp_path, **OPTIONS)
    hub["revision"] = "def"
    assert prepare("hf:owner/name", cache=tmp_path, **OPTIONS).folder != first.folder


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ConnectionError("broken pipe"), "cannot be read: broken pipe"),
        ([{"body": "a"}], "no field 'text': its fields are body"),
        ([{"text": [1]}], "holds list, not text"),
    ],
)
def test_bad_data_sets(hub: dict[str, object], tmp_path: Path, rows: object, message: str) -> None:
    hub["rows"] = rows
    with pytest.raises(DataError, match=message):
        prepare("hf:owner/name", cache=tmp_path, **OPTIONS)
    assert list((tmp_path / "stores").iterdir()) == []


def test_null_rows_are_counted(hub: dict[str, object], tmp_path: Path) -> None:
    hub["rows"] = [{"text": None}, {"text": "a"}, {"text": "b"}, {"text": None}]
    store = prepare("hf:owner/name", cache=tmp_path, **OPTIONS)
    assert {"kind": "null_field", "count": 2}.items() <= store.manifest["warnings"][-1].items()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError) as caught:
        prepare("hf:owner/name", cache=tmp_path, **OPTIONS)
    assert caught.value.fix == "pip install 'thalweg[hub]'"


def test_wrong_names(tmp_path: Path) -> None:
    for name in ("hf:", "hf:name", "hf:a/b/c", "hf:../../etc"):
        with pytest.raises(DataError, match="not a data set on the hub"):
            prepare(name, cache=tmp_path, **OPTIONS)
