"""The two runs of a refined schedule, and what a second gradient a step leaves behind: nothing."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from thalweg.cli import schedule_refine
from thalweg.errors import RecipeError, RunError
from thalweg.methods.schedules.refined import refine
from thalweg.runs import Run
from thalweg.sessions.refining import norms_of, refine_run
from thalweg.sessions.train import resume, train


def column(folder, name):  # type: ignore[no-untyped-def]
    return [line[name] for line in Run.open(folder).metrics("step")]


@pytest.fixture
def recorded(small, tmp_path):  # type: ignore[no-untyped-def]
    return train(small("adamw+linear+record_norms"), tmp_path / "recorded", quiet=True).folder


def test_from_run_to_run(recorded, small, tmp_path, capsys):
    norms = column(recorded, "grad_l1")
    assert len(norms) == 12
    # An l1 norm lies between the l2 norm and that times the root of the number of entries.
    assert all(l2 < l1 < 700 * l2 for l1, l2 in zip(norms, column(recorded, "grad_norm"), strict=True))
    schedule_refine.run(recorded, tmp_path / "refined.json", q=1, window=0.1)
    assert "12 factors from grad_l1" in capsys.readouterr().out
    found = json.loads((tmp_path / "refined.json").read_text(encoding="utf-8"))
    expected = refine(norms, q=1, window=0.1)
    assert found["factors"] == pytest.approx(expected.tolist(), abs=1e-9)
    assert found["arm"].startswith("adamw+linear")
    arm = f"adamw+refined:source={tmp_path / 'refined.json'}"
    after = train(small(arm), tmp_path / "after", quiet=True)
    assert column(after.folder, "lr") == pytest.approx((0.005 * expected).tolist(), abs=1e-9)


def test_recording_changes_nothing(recorded, small, tmp_path):
    plain = train(small("adamw+linear"), tmp_path / "plain", quiet=True)
    assert column(recorded, "loss") == column(plain.folder, "loss")


def test_l2_norms_are_there_in_every_run(small, tmp_path):
    run = train(small("adamw+linear"), tmp_path / "run", quiet=True).folder
    facts = refine_run(run, tmp_path / "refined.json", q=2)
    assert facts["norm"] == "grad_norm"
    with pytest.raises(RunError, match="has not recorded grad_l1") as caught:
        refine_run(run, tmp_path / "refined.json")
    assert "record_norms" in caught.value.fix
    with pytest.raises(RecipeError, match="q = 3"):
        refine_run(run, tmp_path / "refined.json", q=3)
    with pytest.raises(RecipeError, match="cannot write"):
        refine_run(run, tmp_path / "nowhere" / "refined.json", q=2)


class Recorded:
    """A run whose metrics are these (step, progress, norm)."""

    folder = "runs/a"

    def __init__(self, *lines):  # type: ignore[no-untyped-def]
        self.lines = [{"step": step, "progress": progress, "grad_l1": norm} for step, progress, norm in lines]

    def metrics(self, event):  # type: ignore[no-untyped-def]
        return iter(self.lines)


def test_norms_are_put_on_even_progress():
    """A run in seconds: steps of unequal length; one step trained twice; one whose norm was not finite."""
    run = Recorded((1, 0.1, 9.0), (1, 0.1, 1.0), (2, 0.5, 5.0), (3, 0.7, None), (4, 1.0, 10.0))
    assert norms_of(run, "grad_l1").tolist() == pytest.approx([2.5, 5.0, 7.5, 10.0])
    with pytest.raises(RunError, match="not over"):
        norms_of(Recorded((1, 0.1, 9.0)), "grad_l1")


def test_a_second_gradient_leaves_no_trace(small, tmp_path):
    """AdamW's peak rate is far below what DAL allows, so the cap holds and the run is that of a constant rate."""
    adjusted = train(small("adamw+dal"), tmp_path / "dal", quiet=True)
    constant = train(small("adamw+constant:warmup=0.0"), tmp_path / "constant", quiet=True)
    assert column(adjusted.folder, "loss") == column(constant.folder, "loss")
    weights = [load_file(run.checkpoint / "model.safetensors") for run in (adjusted, constant)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(0.1 < curved < 100 for curved in column(adjusted.folder, "curvature"))
    # Two gradients a step, and the clock says so.
    assert column(adjusted.folder, "flops") == [2 * flops for flops in column(constant.folder, "flops")]


def test_a_curvature_that_rules_the_rate(small, tmp_path):
    run = train(small("adamw+dal", training__peak_lr=3.0, budget="4 steps"), tmp_path / "run", quiet=True)
    rates, curved = column(run.folder, "lr"), column(run.folder, "curvature")
    assert rates == pytest.approx([min(2.0 / curvature, 3.0) for curvature in curved])
    assert min(rates) < 3.0


def test_micro_batches_measure_the_same_curvature(small, tmp_path):
    runs = [
        train(small("adamw+dal", budget="3 steps", training__micro_batch=micro), tmp_path / str(micro), quiet=True)
        for micro in (2, 8)
    ]
    one, two = (column(run.folder, "curvature") for run in runs)
    assert one == pytest.approx(two, rel=2e-2)


def test_a_resumed_run_of_dal_is_exact(small, tmp_path):
    """As if it had been killed before its last checkpoint: it goes on from the one before and ends the same."""
    whole = train(small("adamw+dal", training__peak_lr=0.5), tmp_path / "whole", quiet=True)
    before = column(whole.folder, "curvature")
    weights = load_file(whole.checkpoint / "model.safetensors")
    shutil.rmtree(whole.folder / "checkpoints" / "step-00000012")
    lines = whole.folder / "metrics.jsonl"
    kept = [line for line in lines.read_text(encoding="utf-8").splitlines(True) if '"finish"' not in line]
    lines.write_text("".join(kept), encoding="utf-8")
    again = resume(whole.folder, quiet=True)
    assert column(again.folder, "curvature") == before
    after = load_file(again.checkpoint / "model.safetensors")
    assert all(torch.equal(weights[name], after[name]) for name in weights)
