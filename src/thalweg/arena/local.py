"""Runs on this machine, several at a time: one process a run, the cores divided among them."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from thalweg.arena.division import Division, divide
from thalweg.arena.unit import Unit
from thalweg.errors import ArenaError, MachineError
from thalweg.planner.machine_limits import core_count


class Worker:
    """One slot: a `thalweg.arena.worker` process, started when first needed and again when it has died."""

    def __init__(self, number: int, accelerator: int | None) -> None:
        self.number, self.accelerator = number, accelerator
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        """The process, alive."""
        if self._process is None or self._process.poll() is not None:
            environment = {**os.environ, "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "2000")}
            if self.accelerator is not None:
                environment["CUDA_VISIBLE_DEVICES"] = str(self.accelerator)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "thalweg.arena.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                # Ctrl-C is for the comparison alone, which then tells each worker once.
                start_new_session=True,
            )
        return self._process

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do one job and wait for its answer."""
        process = self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"status": "failed", "error": f"the worker process ended with {process.wait()}"}
        return json.loads(line)

    def close(self) -> None:
        """Let the process end; a run at work saves a checkpoint first."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


class Local:
    """Executes units on this machine.

    Attributes:
        slots, threads, reason: how the machine is divided, decided by `prepare`.
    """

    name = "local"

    def __init__(self, cache: Path, jobs: int | None = None) -> None:
        """cache: for measured divisions. jobs: runs at a time, None to measure which number is the fastest."""
        if jobs is not None and jobs < 1:
            raise MachineError(f"{jobs} runs at a time are none", where="--jobs", fix="Give 1 or more.")
        self.cache, self.jobs = cache, jobs
        self.slots, self.threads, self.reason = 1, core_count(), ""
        self._workers: list[Worker] = []
        self._free: queue.Queue[Worker] = queue.Queue()
        self._pool: ThreadPoolExecutor | None = None

    def prepare(self, units: list[Unit]) -> None:
        """Decide how to divide the machine for runs like the first of these."""
        accelerators = _accelerators() if units[0].recipe.training.device != "cpu" else 0
        division = self._divide(units, accelerators)
        self.slots, self.threads, self.reason = division.slots, division.threads, division.reason
        while len(self._workers) < self.slots:
            self._workers.append(Worker(len(self._workers), self._accelerator(accelerators)))
        for worker in self._workers[: self.slots]:
            self._free.put(worker)
        self._pool = ThreadPoolExecutor(self.slots)

    def _accelerator(self, accelerators: int) -> int | None:
        return len(self._workers) % accelerators if accelerators else None

    def _divide(self, units: list[Unit], accelerators: int) -> Division:
        cores = core_count()
        if self.jobs is not None:
            return Division(self.jobs, max(cores // self.jobs, 1), f"{self.jobs} at a time, as said")
        if accelerators:
            each = max(cores // accelerators, 1)
            return Division(min(accelerators, len(units)), each, f"one run on each of {accelerators} GPUs")
        self._workers = [Worker(number, None) for number in range(min(cores, len(units)))]
        unit = max(units, key=lambda one: one.plan["chosen"]["parameters"])
        job = {"recipe": unit.recipe.toml(), "chosen": unit.plan["chosen"]}
        return divide(cores, len(units), job, lambda said, slot: self._workers[slot].ask(said), self.cache)

    def submit(self, unit: Unit) -> Future[dict[str, Any]]:
        """Do a unit as soon as a slot is free; the answer has `status` and perhaps `error`."""
        assert self._pool is not None, "prepare comes first"
        return self._pool.submit(self._perform, unit)

    def probe(self, job: dict[str, Any], seconds: float) -> float:
        """Tokens a second of one run while all slots do the same; `job` has a `recipe` and what was `chosen`."""
        assert self._pool is not None, "prepare comes first"
        said = {**job, "kind": "probe", "threads": self.threads, "seconds": seconds, "log": os.devnull}
        answers = list(self._pool.map(lambda worker: worker.ask(said), self._workers[: self.slots]))
        failed = next((answer for answer in answers if "tokens_per_second" not in answer), None)
        if failed is not None:
            raise ArenaError(f"a few steps of {job['chosen']['model']} failed: {failed.get('error')}")
        return sum(answer["tokens_per_second"] for answer in answers) / len(answers)

    def _perform(self, unit: Unit) -> dict[str, Any]:
        worker = self._free.get()
        try:
            unit.root.mkdir(parents=True, exist_ok=True)
            return worker.ask({"kind": "unit", "unit": unit.to_dict(), "log": str(unit.log)})
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """Start nothing more, let what is at work save itself, and end the processes; may be called twice."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()


def _accelerators() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
