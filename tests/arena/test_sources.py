"""What a result depends on: the method's file and what it imports of its family, nothing else."""

from __future__ import annotations

import pytest

from thalweg import catalog
from thalweg.arena.sources import loop_files, loop_hash, method_files, method_hash, module_of


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (
            "muon",
            {
                "muon.py",
                "muon_update.py",
                "adamw_update.py",
                "base.py",
                "batches.py",
                "newton_schulz.py",
                "sharding.py",
            },
        ),
        ("adamw", {"adamw.py", "adamw_update.py", "base.py", "sharding.py"}),
        ("gradient_noise", {"gradient_noise.py"}),
        ("autolrs", {"autolrs.py", "base.py", "loss_forecast.py", "rate_search.py"}),
        ("linear", {"linear.py", "base.py"}),
    ],
)
def test_files_of_a_method(name, files):
    assert {path.name for path in method_files(name)} == files


def test_every_method_has_files_that_are_there():
    for name in catalog.load():
        assert all(path.is_file() for path in method_files(name)), name


def test_hash_follows_the_files(monkeypatch, tmp_path):
    assert method_hash(["adamw"]) != method_hash(["muon"])
    assert method_hash(["adamw", "muon"]) == method_hash(["muon", "adamw"])
    before = method_hash(["linear"])
    changed = method_files("linear")
    (path,) = [path for path in changed if path.name == "linear.py"]
    text = path.read_bytes()
    monkeypatch.setattr(type(path), "read_bytes", lambda self: text + b"#" if self == path else self.open("rb").read())
    assert method_hash(["linear"]) != before
    monkeypatch.undo()
    assert method_hash(["linear"]) == before


def test_the_loop_holds_the_trainer_and_no_method():
    names = {str(path).split("thalweg/")[-1] for path in loop_files()}
    assert "training/trainer.py" in names
    assert not any(name.startswith("methods/") for name in names)


def test_the_loop_is_what_a_run_imports():
    """What only some method or some other verb imports counts for those only."""
    common = {str(path).split("thalweg/")[-1] for path in loop_files()}
    assert {"sessions/train.py", "data/building.py", "models/ladder.py", "training/callbacks/metrics.py"} <= common
    assert not {"models/coalescing.py", "sessions/predict.py"} & common
    with_method = {str(path).split("thalweg/")[-1] for path in loop_files([module_of("multi_level")])}
    with_claim = {str(path).split("thalweg/")[-1] for path in loop_files(["thalweg.arena.claims.level_cycle"])}
    assert "models/coalescing.py" in with_method | with_claim
    assert common <= with_method & with_claim
    assert loop_hash(["adamw"]) == loop_hash(["muon"]) != loop_hash(["multi_level"])
