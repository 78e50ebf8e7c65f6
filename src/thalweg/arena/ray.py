"""Runs on a Ray cluster: the same units, wherever a CPU or a GPU is free.

Machines of a cluster need not share a disk: a task trains in a folder of its own and gives the run's files back, and
the comparison puts them where a local run would have put them. A task whose worker dies is started again by Ray. The
corpus must be readable under the same path on every machine, and Thalweg and its versions must be the same.
"""

from __future__ import annotations

import importlib.util
import logging
from concurrent.futures import Future
from typing import Any

from thalweg.arena.unit import Unit
from thalweg.errors import ArenaError

RETRIES = 3
# Files of a run that a comparison reads; checkpoints stay where they were made.
KEPT = ("recipe.toml", "plan.json", "environment.json", "metrics.jsonl")


class OnRay:
    """Executes units on a Ray cluster.

    Attributes:
        slots, threads, reason: runs at a time over the cluster and the threads of each, decided by `prepare`.
    """

    name = "ray"

    def __init__(self, address: str | None, jobs: int | None = None) -> None:
        """address: of the cluster ("auto", "ray://host:10001"); None joins one that is there or starts a local one.

        Raises:
            ArenaError: Ray is not installed, or there is no cluster at the address.
        """
        if importlib.util.find_spec("ray") is None:
            raise ArenaError("ray is not installed", where="--on ray", fix='pip install "thalweg[ray]"')
        import ray

        self.jobs = jobs
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ArenaError(
                    f"cannot reach a Ray cluster: {error}", where=f"--address {address}", fix="ray start --head"
                ) from None
        self.slots, self.threads, self.reason = 1, 1, ""
        self._task: Any = None
        self._waiting: set[Future[dict[str, Any]]] = set()

    def prepare(self, units: list[Unit]) -> None:
        """One run for each GPU; without GPUs one for each CPU, or as many as `jobs` says."""
        import ray

        have = ray.cluster_resources()
        cpus, gpus = int(have.get("CPU", 1)), int(have.get("GPU", 0))
        wanted = self.jobs or gpus or cpus
        self.slots = max(min(wanted, len(units)), 1)
        self.threads = max(cpus // max(wanted, 1), 1)
        each = f"{self.threads} CPU{'s' if self.threads > 1 else ''}" + (" and a GPU" if gpus else "")
        self.reason = f"{self.slots} runs at a time on a Ray cluster of {cpus} CPUs and {gpus} GPUs, {each} each"
        self._task = ray.remote(num_cpus=self.threads, num_gpus=1 if gpus else 0, max_retries=RETRIES)(perform_away)

    def submit(self, unit: Unit) -> Future[dict[str, Any]]:
        """Send a unit; the answer has `status` and perhaps `error`, and the files are in the unit's folder by then."""
        answer: Future[dict[str, Any]] = Future()

        self._waiting.add(answer)

        def arrived(sent: Future[Any]) -> None:
            if answer not in self._waiting:
                return  # closed meanwhile
            self._waiting.discard(answer)
            try:
                found = sent.result()
            except Exception as error:  # whatever Ray says of a task that could not be done
                answer.set_result({"status": "failed", "error": f"Ray gave up on it: {type(error).__name__}"})
                return
            for name, content in found.pop("files").items():
                path = unit.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            answer.set_result(found)

        self._task.remote(unit.to_dict()).future().add_done_callback(arrived)
        return answer

    def close(self) -> None:
        """Leave the cluster; tasks of this driver end with it, and who waits for one is told so."""
        import ray

        waiting, self._waiting = self._waiting, set()
        for answer in waiting:
            answer.set_result({"status": "interrupted"})
        ray.shutdown()


def perform_away(said: dict[str, Any]) -> dict[str, Any]:
    """The task: train in a temporary folder and give the files back as bytes."""
    import tempfile

    from thalweg.arena.unit import perform
    from thalweg.errors import UserError

    with tempfile.TemporaryDirectory(prefix="thalweg-") as folder:
        unit = Unit.from_dict({**said, "root": folder})
        answer: dict[str, Any] = {}
        try:
            perform(unit)
            answer["status"] = unit.state()
        except UserError as error:
            stopped = unit.state() == "stopped"
            answer = {"status": "stopped" if stopped else "failed", "error": error.what}
        paths = [unit.folder / name for name in KEPT]
        answer["files"] = {path.name: path.read_bytes() for path in paths if path.is_file()}
    return answer
