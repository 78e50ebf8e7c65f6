from __future__ import annotations

import errno
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from thalweg.errors import RunError
from thalweg.training.checkpoints import (
    CheckpointFolder,
    decode,
    disk_error,
    encode,
    random_state,
    read_state,
    restore_random_state,
    write_state,
)

plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False), st.text(max_size=8)
)
tensors = st.builds(
    lambda n, s: torch.randn(n, generator=torch.Generator().manual_seed(s)), st.integers(0, 4), st.integers(0, 99)
)
keys = st.text(max_size=6).filter(lambda text: not text.startswith("$"))
trees = st.recursive(
    plain | tensors,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(st.integers(0, 99), inner, min_size=1, max_size=3),
    ),
    max_leaves=8,
)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=150)
@given(trees)
def test_any_state_round_trips(tree):
    found: dict = {}
    text = json.dumps(encode(tree, found))
    assert same(decode(json.loads(text), found), tree)


def test_state_on_disk_round_trips_with_dtypes(tmp_path):
    state = {
        "half": torch.randn(3).bfloat16(),
        "step": torch.tensor(7.0),
        "bytes": torch.arange(4, dtype=torch.uint8),
        "view": torch.arange(12.0).view(3, 4).T,
        "groups": [{"betas": (0.9, 0.95), "lr": 1e-3}],
        "state": {0: {"m": torch.zeros(2)}, 3: {}},
    }
    write_state(tmp_path, state)
    assert same(read_state(tmp_path), state)


def test_shared_memory_is_allowed(tmp_path):
    tensor = torch.arange(3.0)
    write_state(tmp_path, {"a": tensor, "b": tensor})
    assert same(read_state(tmp_path)["b"], tensor)


def test_objects_are_refused():
    with pytest.raises(TypeError, match="/inner is a object"):
        encode({"inner": object()}, {})


def fill(folder: CheckpointFolder, step: int) -> None:
    working = folder.begin(step)
    (working / "weights").write_bytes(bytes([step]) * 100)
    folder.commit(working, step)


def test_keeps_the_newest_and_points_to_it(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (1, 2, 30):
        fill(folder, step)
    assert folder.steps() == [2, 30]
    assert (tmp_path / "latest").resolve() == folder.path(30).resolve()
    assert folder.newest() == (30, [])


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "manifest", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, harm):
    folder = CheckpointFolder(tmp_path)
    fill(folder, 1)
    fill(folder, 2)
    weights, manifest = folder.path(2) / "weights", folder.path(2) / "manifest.json"
    if harm == "flip":
        weights.write_bytes(b"\x02" * 99 + b"\x03")
    elif harm == "cut":
        weights.write_bytes(b"\x02" * 50)
    elif harm == "remove":
        weights.unlink()
    elif harm == "manifest":
        manifest.write_text(manifest.read_text()[:-5])
    else:
        manifest.unlink()
    step, complaints = folder.newest()
    assert step == 1
    assert "step 2 is damaged" in complaints[0]


def test_no_sound_checkpoint(tmp_path):
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(RunError, match="no usable checkpoint"):
        folder.newest()
    fill(folder, 1)
    (folder.path(1) / "weights").write_bytes(b"")
    with pytest.raises(RunError, match="step 1 is damaged"):
        folder.newest()


def test_leftovers_of_a_dead_writer_are_no_checkpoint(tmp_path):
    folder = CheckpointFolder(tmp_path)
    fill(folder, 1)
    (folder.begin(2) / "weights").write_bytes(b"half")
    assert folder.newest() == (1, [])
    folder.begin(3)
    assert sorted(p.name for p in tmp_path.glob(".step*")) == [".step-00000003.tmp"]


def test_the_same_step_can_be_written_again(tmp_path):
    folder = CheckpointFolder(tmp_path)
    fill(folder, 5)
    fill(folder, 5)
    assert folder.newest() == (5, [])


def test_a_full_disk_is_told_from_other_errors(tmp_path):
    assert "the disk is full" in str(disk_error(OSError(errno.ENOSPC, "full"), tmp_path))
    told = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "intact" in str(disk_error(told, tmp_path))
    assert disk_error(OSError(errno.EACCES, "denied"), tmp_path) is None
    assert disk_error(ValueError("other"), tmp_path) is None


def test_random_state_round_trip():
    device = torch.device("cpu")
    state = random_state(device)
    first = torch.rand(3)
    restore_random_state(state, device)
    assert torch.equal(torch.rand(3), first)
