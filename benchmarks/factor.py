"""What a schedule costs a step: microseconds of one `factor(clock)` call for every closed-form schedule.

Each schedule of the catalogue is asked with its card's defaults, and where a shape can be chosen with every shape, once
for each step of a run of 100 steps under a budget of tokens, with the clock that the trainer has. A round is the mean
over these calls, the loop around them included. Rounds are short and many, so that the median is that of a round in
which nothing else took the core, and the rounds of all schedules are interleaved. Left out are schedules that decide
while they train: what they cost is not the call. Goal: below 5 microseconds a call.

Examples:
    python benchmarks/factor.py
    python benchmarks/factor.py --rounds 1000 --json results/factor.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from _common import finish, say, spread, table, verdict

from thalweg import catalog
from thalweg.arms import parse_choice
from thalweg.budget import Budget
from thalweg.errors import UserError
from thalweg.training.clock import Clock
from thalweg.training.planned import is_closed_form

GOAL = 5.0
STEPS, STEP_TOKENS, STEP_FLOPS = 100, 2048, 1e10


def arms() -> list[str]:
    """Every closed-form schedule by its defaults, and once for every other shape that it offers."""
    found = []
    for name, card in catalog.load().items():
        if card.slot != "schedule" or not is_closed_form(catalog.resolve(name)):
            continue
        shape = card.options.get("shape")
        others = [choice for choice in (shape.choices or ()) if choice != shape.default] if shape else []
        found += [name, *(f"{name}:shape={choice}" for choice in others)]
    return found


def clocks() -> list[Clock]:
    """The trainer's clock at every step of a run."""
    at_each_step = []
    for step in range(STEPS):
        clock = Clock(Budget(STEPS * STEP_TOKENS, "tokens"))
        for _ in range(step):
            clock.advance(STEP_TOKENS, STEP_FLOPS)
        clock.begin_step(STEP_TOKENS, STEP_FLOPS)
        at_each_step.append(clock)
    return at_each_step


def built(arm: str) -> Any:
    """The schedule, or None for one that its arm alone does not make."""
    # Some shapes cannot end at 0: they get the floor that they ask for.
    for spelled in (arm, f"{arm},floor=0.1" if ":" in arm else f"{arm}:floor=0.1"):
        try:
            return parse_choice(spelled).build()
        except UserError as error:
            reason = error.what
    say(f"left out: {arm} ({reason})")
    return None


def round_of(schedule: Any, moments: list[Clock]) -> float:
    """Microseconds a call, the mean over a run."""
    factor = schedule.factor
    began = time.perf_counter()
    for clock in moments:
        factor(clock)
    return (time.perf_counter() - began) / len(moments) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="of 100 calls for every schedule (200)")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    schedules = {arm: schedule for arm in arms() if (schedule := built(arm)) is not None}
    moments = clocks()
    measured: dict[str, list[float]] = {arm: [] for arm in schedules}
    for number in range(options.rounds + 1):
        for arm, schedule in schedules.items():
            microseconds = round_of(schedule, moments)
            if number:  # the first round warms caches up
                measured[arm].append(microseconds)
    rows = [
        [arm, spread(values, ".2f"), verdict(statistics.median(values), GOAL, at_least=False)]
        for arm, values in measured.items()
    ]
    slowest = max(statistics.median(values) for values in measured.values())
    text = table(["schedule", "microseconds a call", f"below {GOAL:g}"], rows)
    text += f"\n\nSlowest: {slowest:.2f} microseconds (goal {GOAL:g}: {verdict(slowest, GOAL, at_least=False)})"
    text += f"; {options.rounds} rounds of {STEPS} calls, median (least to largest)"
    finish(text, {"rounds": options.rounds, "calls": STEPS, "microseconds": measured}, options.json)


if __name__ == "__main__":
    main()
