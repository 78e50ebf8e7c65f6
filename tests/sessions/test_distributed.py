"""The same run on one process and on two, with DDP and with FSDP2 (gloo, CPU)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thalweg.runs import Run

STEPS = 20


def launch(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node N -m thalweg train ...`, or the plain command for one process."""
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, "thalweg", "train", *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def recipes(tmp_path_factory, small):
    """Writes the recipe of a run, in float32, and returns its path."""

    def make(arm: str, shard: bool = False, budget: str = f"{STEPS} steps") -> Path:
        folder = tmp_path_factory.mktemp("recipe")
        how = {"training__precision": "float32", "training__checkpoint_every": "10 steps"}
        recipe = small(arm, budget=budget, training__shard=shard, **how)
        (folder / "recipe.toml").write_text(recipe.toml())
        return folder / "recipe.toml"

    return make


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in Run.open(folder).metrics("step")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "latest" / "model.safetensors")


@pytest.fixture(scope="module")
def single(recipes, tmp_path_factory):
    """Runs on one process, by arm."""
    made: dict[str, Path] = {}

    def get(arm: str) -> Path:
        if arm not in made:
            made[arm] = tmp_path_factory.mktemp("single") / "run"
            launch(1, str(recipes(arm)), "--out", str(made[arm]))
        return made[arm]

    return get


@pytest.mark.parametrize(
    ("arm", "shard"),
    [
        # Muon iterates in bfloat16 where that is fast, which magnifies the rounding of a different order of sums.
        ("muon:dtype=float32+linear", False),
        ("adamw+linear+dynamic_loss", False),
        ("muon:dtype=float32+linear", True),
        # Some parameters get no gradient in some steps, which DDP must be told.
        ("drop_muon:dtype=float32+linear", False),
    ],
)
def test_two_ranks_train_as_one_and_one_goes_on(recipes, single, tmp_path, arm, shard):
    out = tmp_path / "two"
    launch(2, str(recipes(arm, shard=shard)), "--out", str(out))
    expected = losses(single(arm))
    assert len(expected) == STEPS
    assert losses(out) == pytest.approx(expected, rel=1e-5)
    assert json.loads((out / "environment.json").read_text())["ranks"] == 2
    mine, theirs = weights(single(arm)), weights(out)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.allclose(tensor, theirs[name], atol=2e-3), name
    # As if it had been killed after step 10: the last checkpoint and the end of the metrics never came to be.
    forget_after(out, 10)
    launch(1, "--resume", str(out))
    assert losses(out) == pytest.approx(expected, rel=1e-5)
    assert (out / "report.html").exists()


def forget_after(folder: Path, step: int) -> None:
    """Turn a finished run into one that stopped right after its checkpoint of `step`."""
    import shutil

    for path in (folder / "checkpoints").glob("step-*"):
        if path.name != f"step-{step:08d}":
            shutil.rmtree(path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["step"] <= step]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))


def test_a_batch_that_ranks_cannot_share(recipes, tmp_path):
    path = recipes("adamw")
    text = path.read_text().replace("batch_size = 8", "batch_size = 7")
    path.write_text(text)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "thalweg"]
    done = subprocess.run(
        [*start, "train", str(path), "--out", str(tmp_path / "x")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert "cannot be divided over 2 ranks" in done.stderr
