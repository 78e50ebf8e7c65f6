"""metrics.jsonl is read whatever happened to the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thalweg.reports.history import MAX_EVALUATIONS, MAX_MARKS, History, read_history


def step(number: int, loss: Any = 2.0, **more: Any) -> dict[str, Any]:
    return {"event": "step", "step": number, "tokens": number * 8, "seconds": number / 4, "loss": loss, **more}


def evaluation(number: int, bits: Any = 1.5) -> dict[str, Any]:
    return {"event": "evaluation", "step": number, "held_out_loss": 3.0, "held_out_bits_per_byte": bits}


def told(*events: dict[str, Any]) -> History:
    history = History()
    for event in events:
        history.take(event)
    return history


def write(path: Path, *events: dict[str, Any], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + tail, encoding="utf-8")
    return path


def test_torn_last_line_is_left_out_and_told(tmp_path: Path) -> None:
    history = read_history(write(tmp_path / "m", step(1), step(2), tail='{"event":"step","step":3,"lo'))
    assert (history.torn, history.unreadable_lines, history.at.step) == (True, 0, 2)


def test_torn_line_in_the_middle_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "m", step(1), tail='{"event":"st\n' + json.dumps(step(2)) + "\n[1]\n\xff\n")
    history = read_history(path)
    assert (history.torn, history.unreadable_lines, history.steps_seen) == (False, 3, 2)


def test_deeply_nested_line_is_no_crash(tmp_path: Path) -> None:
    history = read_history(write(tmp_path / "m", step(1), tail="[" * 200_000 + "\n"))
    assert history.unreadable_lines == 1


def test_missing_file(tmp_path: Path) -> None:
    history = read_history(tmp_path / "none")
    assert history.missing
    assert history.status()[0] == "empty"


def test_status_of_each_kind_of_end() -> None:
    finish = {"event": "finish", "step": 2, "seconds": 3.5}
    assert told(step(1), step(2), finish).status()[0] == "finished"
    assert told(step(1), step(2)).status()[0] == "interrupted"
    assert told(step(1), step(2, float("nan")), finish).status()[0] == "diverged"
    assert told(step(1), step(2, None), finish).status()[0] == "diverged"
    assert told(step(1, None), step(2), finish).status()[0] == "finished"
    # Extended after its end: on the way again.
    assert told(step(1), finish, step(2)).status()[0] == "interrupted"
    rising = [step(number, 2.0 + number / 10) for number in range(1, 40)]
    assert told(*rising, {"event": "finish"}).status()[0] == "diverged"
    falling = [step(number, 9.0 - number / 10) for number in range(1, 40)]
    assert told(*falling, {"event": "finish"}).status()[0] == "finished"


def test_seconds_of_the_finish_line_count() -> None:
    assert told(step(1), {"event": "finish", "step": 1, "seconds": 9.5}).at.seconds == 9.5


def test_resumed_run_walks_steps_once() -> None:
    first = [step(number, 10.0) for number in range(1, 11)]
    again = [step(number, 5.0) for number in range(7, 13)]
    history = told(*first, evaluation(10, 9.9), {"event": "resume", "step": 6}, *again, evaluation(12, 1.1))
    points = history.curves["loss"].points()
    assert [point.at.step for point in points] == list(range(1, 13))
    assert [point.value for point in points] == [10.0] * 6 + [5.0] * 6
    assert [e.bits_per_byte for e in history.evaluations] == [1.1]
    assert history.steps_redone == 4
    assert len(history.curves["loss"].abandoned) >= 4


def test_evaluating_a_step_again_counts_once() -> None:
    history = told(step(1), evaluation(1, 1.7), evaluation(1, 1.6))
    assert [e.bits_per_byte for e in history.evaluations] == [1.6]


def test_marks_and_evaluations_are_bounded_and_the_newest_evaluation_stays() -> None:
    history = History()
    for number in range(1, 5000):
        history.take(step(number))
        history.take(evaluation(number, 10 - number / 1000))
        history.take({"event": "skip", "step": number, "reason": "non-finite gradient"})
    assert len(history.marks) == MAX_MARKS
    assert history.mark_counts == {"skip": 4999}
    assert len(history.evaluations) <= MAX_EVALUATIONS
    assert history.final is not None
    assert history.final.bits_per_byte == pytest.approx(5.001)


def test_values_of_the_wrong_type_are_as_if_absent() -> None:
    history = told(step(1, lr="high", grad_norm=[1], mfu=True, tokens_per_second=10**400), {"event": 3}, {})
    assert history.curves["loss"].points_seen == 1
    assert all(history.curves[name].points_seen == 0 for name in ("lr", "grad_norm", "mfu", "tokens_per_second"))


def test_a_run_that_could_not_go_on_says_why() -> None:
    status, why = told(step(1), {"event": "stopped", "step": 1, "reason": "not finite"}).status()
    assert (status, why) == ("diverged", "Training could not go on: not finite.")
    assert told(step(1), {"event": "stopped", "step": 1}, step(2), {"event": "finish"}).status()[0] == "finished"
