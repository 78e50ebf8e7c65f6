"""Whether torch.compile pays: measured compile time against measured gain, and tried only where it may."""

from __future__ import annotations

import os
import shutil

import torch

from thalweg.errors import MachineError
from thalweg.planner.assumptions import COMPILE_WORTH_TRYING, MEASURING_SHARE
from thalweg.planner.candidates import Candidate
from thalweg.planner.rules import AS_SAID, Decision
from thalweg.planner.situation import Situation
from thalweg.planner.speeds import Speeds


def decide_compile(situation: Situation, speeds: Speeds, chosen: Candidate) -> Decision:
    """Compile or not, and why."""
    wanted = situation.recipe.training.compile
    if wanted != "auto":
        return Decision(wanted == "on", AS_SAID)
    if not situation.timed:
        unit = situation.recipe.budget.unit
        return Decision(False, f"off: a budget in {unit} gives the same run whatever this machine's speed is")
    if situation.seconds < COMPILE_WORTH_TRYING:
        return Decision(False, f"off: not worth trying in less than {COMPILE_WORTH_TRYING / 60:g} minutes of training")
    if not has_compiler(situation.device):
        return Decision(False, "off: there is no C++ compiler here")
    plain = speeds.timings.get(chosen.size.name)
    if plain is None:
        return Decision(False, "off: this size was not timed, so a gain could not be told")
    return _tried(situation, speeds, chosen, plain.micro_batch)


def require_compiler(situation: Situation) -> None:
    """Raises MachineError where the recipe says "on" and there is nothing to compile with."""
    if situation.recipe.training.compile == "on" and not has_compiler(situation.device):
        raise MachineError(
            "compiling needs a C++ compiler, and there is none here",
            where="training.compile",
            fix="Install g++ (or name a compiler in $CXX), or set training.compile to off.",
        )


def has_compiler(device: torch.device) -> bool:
    """Whether torch can compile for a device: on a CPU it writes C++, on a GPU it brings its own compiler."""
    if device.type != "cpu":
        return True
    named = os.environ.get("CXX", "").split()
    return any(shutil.which(name) for name in (*named[:1], "g++", "clang++"))


def _tried(situation: Situation, speeds: Speeds, chosen: Candidate, plain: float) -> Decision:
    """Compile the size chosen, time it, and compare with `plain` seconds a pass."""
    seconds = situation.seconds - speeds.spent
    room = MEASURING_SHARE * situation.seconds - speeds.spent
    try:
        quick = speeds.measure(chosen.size, chosen.layout, max(room, 0.0), compiled=True)
    except Exception as error:  # the compiler's own failures: many kinds, and training works without it
        return Decision(False, f"off: compiling failed here ({type(error).__name__})")
    finally:
        torch.compiler.reset()
    saved = seconds * (1 - quick.micro_batch / plain) - quick.first
    return Decision(
        saved > 0,
        f"{quick.first:.0f} s to compile, {plain / quick.micro_batch - 1:+.0%} speed: "
        f"{'saves' if saved > 0 else 'would lose'} {abs(saved):.0f} s of {seconds:.0f} s",
    )
