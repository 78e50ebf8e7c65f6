"""A process that runs are born from: it imports everything once and then forks a fresh process for each run.

Importing torch and transformers takes seconds, which dozens of short runs would pay dozens of times. A fork after the
import costs milliseconds and still gives every run a process of its own: its own threads, memory peak, random state and
crash. The parent sends one job a line on standard input and gets one answer a line; when the parent is gone, the run at
work is told to stop, and its checkpoint is kept.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

POLL = 0.05  # seconds


def main() -> None:
    """Serve jobs until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Imported for what they bring along; nothing is computed here, so that no thread exists when forking.
    import thalweg.planner.measure
    import thalweg.sessions.train  # noqa: F401

    pending = b""
    while True:
        while b"\n" not in pending:
            block = os.read(0, 1 << 16)
            if not block:
                return
            pending += block
        line, _, pending = pending.partition(b"\n")
        answers.write(json.dumps(_in_child(json.loads(line))) + "\n")
        answers.flush()


def _in_child(job: dict[str, Any]) -> dict[str, Any]:
    """Fork, let the child do the job, and say how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _serve(job, writer)
    os.close(writer)
    said = b""
    told = False
    while True:
        ready, _, _ = select.select([reader, *([] if told else [0])], [], [], POLL)
        if 0 in ready and not os.read(0, 1):
            # No second job is sent before this one is answered: standard input is readable when it has been closed.
            os.kill(child, signal.SIGTERM)
            told = True
        if reader in ready:
            block = os.read(reader, 1 << 16)
            if not block:
                break
            said += block
    os.close(reader)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if said:
        return json.loads(said)
    return {"status": "failed", "error": f"the process was ended by signal {-code}" if code < 0 else f"exit {code}"}


def _serve(job: dict[str, Any], writer: int) -> None:
    """The child: do the job, write the answer, and end without the parent's clean-up."""
    os.close(0)
    answer: dict[str, Any]
    try:
        log = os.open(Path(job["log"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        answer = perform_job(job)
    except BaseException as error:
        from thalweg.errors import UserError

        traceback.print_exc()
        what = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        answer = {"status": "failed", "error": what}
    sys.stderr.flush()
    os.write(writer, json.dumps(answer).encode())
    os._exit(0)


def perform_job(job: dict[str, Any]) -> dict[str, Any]:
    """Train a unit, or time a plan; the answer as plain data."""
    from thalweg.arena.division import probe
    from thalweg.arena.unit import Unit, perform

    if job["kind"] == "probe":
        return {"status": "finished", **probe(job["recipe"], job["chosen"], job["threads"], job["seconds"])}
    unit = Unit.from_dict(job["unit"])
    perform(unit)
    state = unit.state()
    return {"status": state if state in ("finished", "stopped") else "interrupted"}


if __name__ == "__main__":
    main()
