"""Runs in processes of their own: finished, failed, killed and continued."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest

from thalweg.arena.local import Local
from thalweg.arena.measured import Outcome, progress_of, run_of
from thalweg.arena.unit import Unit, perform
from thalweg.arena.workload import Workload
from thalweg.errors import MachineError
from thalweg.runs import Run


@pytest.fixture
def local(tmp_path):
    """One slot with one thread."""
    made = Local(tmp_path / "cache", jobs=1)
    made.threads = 1
    yield made
    made.close()


def losses(unit: Unit) -> list[float]:
    return [line["loss"] for line in Run.open(unit.folder).metrics("step")]


def wait_for(condition, seconds: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def long_unit(workload: Workload) -> Unit:
    """A run of many steps with checkpoints all along."""
    longer = Workload(workload.model, workload.corpus, "400 steps", workload.settings, workload.root)
    longer.prepare("adamw+linear")
    return longer.unit("adamw+linear", 0).on(1, "")


def test_two_runs_of_one_worker_and_their_numbers(workload, local):
    units = [workload.unit("adamw+linear", seed).on(1, "") for seed in (0, 1)]
    local.prepare(units)
    assert local.slots == 1
    answers = [local.submit(unit) for unit in units]
    runs = [run_of(Outcome(unit, answer.result(), reused=False)) for unit, answer in zip(units, answers, strict=True)]
    assert [run["status"] for run in runs] == ["finished", "finished"]
    assert [run["steps"] for run in runs] == [12, 12]
    assert runs[0]["tokens"] == 12 * 8 * 32
    assert runs[0]["curve"]["steps"][-1] == 12
    assert runs[0]["curve"]["bits_per_byte"][-1] == runs[0]["bits_per_byte"]
    assert runs[0]["bits_per_byte"] != runs[1]["bits_per_byte"]
    assert 0 < runs[0]["step_seconds"] < 10
    assert 0 < runs[0]["training_seconds"] <= runs[0]["seconds"] * 1.5
    assert progress_of(units[0]) == 1.0


def test_a_killed_run_fails_and_goes_on_bit_for_bit(workload, local):
    unit = long_unit(workload)
    local.prepare([unit])
    answer = local.submit(unit)
    wait_for(lambda: unit.state() == "begun" and 0.05 < progress_of(unit) < 0.9)
    os.kill(int((unit.folder / ".lock").read_text()), signal.SIGKILL)
    assert answer.result() == {"status": "failed", "error": "the process was ended by signal 9"}
    assert unit.state() == "begun"
    assert local.submit(unit).result() == {"status": "finished"}
    after = losses(unit)
    assert len(after) == 400
    shutil.rmtree(unit.folder)
    assert local.submit(unit).result() == {"status": "finished"}
    assert losses(unit) == after


def test_closing_lets_a_run_save_itself(workload, local):
    unit = long_unit(workload)
    local.prepare([unit])
    answer = local.submit(unit)
    wait_for(lambda: progress_of(unit) > 0.02)
    local.close()
    assert answer.result() == {"status": "interrupted"}
    assert unit.state() == "begun"
    assert any((unit.folder / "checkpoints").glob("step-*"))


def test_what_goes_wrong_in_a_run_is_told(workload, local, corpus):
    unit = workload.unit("adamw+linear", 0).on(1, "")
    broken = Unit.from_dict(unit.to_dict() | {"recipe": unit.recipe.toml().replace(str(corpus), "/nowhere")})
    local.prepare([unit])
    answer = local.submit(broken).result()
    assert answer["status"] == "failed"
    assert "nowhere" in answer["error"] or "There is no" in answer["error"] or "no such" in answer["error"].lower()
    assert "Traceback" in broken.log.read_text()
    assert local.submit(unit).result() == {"status": "finished"}


def test_a_folder_that_is_in_use_is_left_alone(workload):
    unit = workload.unit("adamw+linear", 0)
    unit.folder.mkdir(parents=True)
    holder = Run(unit.folder)
    holder.lock()
    with pytest.raises(Exception, match="another process"):
        perform(unit)
    holder.close()
    perform(unit)
    assert unit.state() == "finished"


def test_no_runs_at_a_time_is_a_mistake(tmp_path):
    with pytest.raises(MachineError, match="--jobs"):
        Local(tmp_path, jobs=0)
