from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from thalweg.errors import RunError
from thalweg.recipe import Recipe
from thalweg.runs import Run, write_text


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run.create(tmp_path / "run")
    made.write_recipe(Recipe.parse(budget="3 steps"))
    return made


def test_names_itself_by_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = Run.create(), Run.create()
    assert first.folder != second.folder
    assert first.folder.parent == second.folder.parent == Path("runs")


def test_an_occupied_folder_is_refused(tmp_path, run):
    with pytest.raises(RunError) as caught:
        Run.create(run.folder)
    assert "--resume" in caught.value.fix
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError):
        Run.create(tmp_path / "file")
    with pytest.raises(RunError, match="cannot make"):
        Run.create(tmp_path / "file" / "below")


def test_opening_what_is_no_run(tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        Run.open(tmp_path)


def test_metrics_skip_a_torn_line(run):
    run.append({"event": "step", "step": 1})
    run.append({"event": "evaluation", "step": 1})
    run.close()
    with run.metrics_path.open("a") as file:
        file.write('{"event": "step", "st')
    assert [line["step"] for line in run.metrics()] == [1, 1]
    assert [line["event"] for line in run.metrics("step")] == ["step"]


def test_rewinding_drops_what_came_after(run):
    run.append({"event": "step", "step": 1})
    size = run.sync_metrics()
    run.append({"event": "step", "step": 2})
    with run.metrics_path.open("a") as file:
        file.write('{"torn')
    run.rewind_metrics(size)
    run.append({"event": "step", "step": 2, "again": True})
    assert [json.loads(line) for line in run.metrics_path.read_text().splitlines()] == [
        {"event": "step", "step": 1},
        {"event": "step", "step": 2, "again": True},
    ]


def test_numbers_that_are_not_finite_are_null(run):
    run.append({"event": "step", "step": 1, "loss": float("nan"), "norm": float("inf")})
    assert json.loads(run.metrics_path.read_text()) == {"event": "step", "step": 1, "loss": None, "norm": None}


def test_write_text_leaves_no_part(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_write_text_from_many_threads_leaves_one_whole_text(tmp_path):
    path = tmp_path / "file"
    texts = [f"{number}\r\n" * 20_000 for number in range(8)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda text: write_text(path, text), texts))
    assert path.read_bytes().decode() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def _hold(folder: str, ready, release) -> None:  # type: ignore[no-untyped-def]
    Run(Path(folder)).lock()
    ready.set()
    release.wait(30)


def test_a_second_process_is_refused(run):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(run.folder), ready, release))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(RunError, match=f"pid {holder.pid}"):
        run.lock()
    release.set()
    holder.join(30)
    run.lock()  # free again
    run.close()


def test_a_crash_leaves_no_lock(run):
    code = f"""
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from thalweg.runs import Run
Run(Path({str(run.folder)!r})).lock()
print("held", flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match="another process"):
        run.lock()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(10)
    assert (run.folder / ".lock").exists()
    deadline = time.monotonic() + 5
    while True:
        try:
            run.lock()
            break
        except RunError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    run.close()
