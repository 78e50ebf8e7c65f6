"""One run of a comparison as data: what to train, under which plan, in which folder.

The folder's name is the hash of everything that the outcome depends on, so a run that was finished once, by whatever
comparison, is found again and not repeated.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from thalweg.arena.sources import loop_hash, method_hash
from thalweg.recipe import Recipe
from thalweg.runs import Run

# Keys of a plan's `chosen` that decide what a run computes or how its speed is measured.
DECISIVE = (
    "model",
    "vocab_size",
    "tie",
    "context",
    "batch_size",
    "micro_batch",
    "peak_lr",
    "lr_scale",
    "weight_decay",
    "precision",
    "compile",
    "threads",
    "evaluations",
    "evaluation_tokens",
)


@dataclass(frozen=True)
class Unit:
    """One run.

    Attributes:
        recipe: pinned: nothing in it is left to a planner.
        plan: the plan that goes with it.
        root: the folder in which the folders of runs lie.
        place: what the time depends on besides (runs side by side, machine); in the hash under a time budget.
    """

    recipe: Recipe
    plan: dict[str, Any]
    root: Path
    place: str = ""

    def on(self, threads: int, place: str) -> Unit:
        """The same run on so many threads."""
        plan = {**self.plan, "chosen": {**self.plan["chosen"], "threads": threads}}
        return replace(self, plan=plan, place=place)

    @cached_property
    def key(self) -> str:
        """Hash of recipe, decisive plan, corpus and code: 16 hexadecimal digits."""
        import torch

        names = sorted(choice.name for choice in self.recipe.choices)
        decisive = {
            "recipe": self.recipe.toml(),
            "plan": {name: self.plan["chosen"].get(name) for name in DECISIVE},
            "corpus": self.plan["data"]["content_hash"],
            "code": [loop_hash(names), method_hash(names)],
            "torch": str(torch.__version__),
            "place": self.place if self.recipe.budget.unit == "seconds" else "",
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        return self.root / self.key

    @property
    def log(self) -> Path:
        """What the run's process printed."""
        return self.root / f"{self.key}.log"

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it, for another process."""
        return {
            "recipe": self.recipe.toml(),
            "plan": self.plan,
            "root": str(self.root),
            "place": self.place,
            "key": self.key,
        }

    @classmethod
    def from_dict(cls, said: dict[str, Any]) -> Unit:
        import tomllib

        recipe = Recipe.validated(tomllib.loads(said["recipe"]), where="unit")
        unit = cls(recipe, said["plan"], Path(said["root"]), said["place"])
        # The sender's key: who asks for a run must find it, even if sources were edited meanwhile.
        unit.__dict__["key"] = said["key"]
        return unit

    def state(self) -> str:
        """ "finished", "stopped" (training could not go on), "begun" (has a checkpoint) or "new"."""
        if not (self.folder / "recipe.toml").is_file():
            return "new"
        events = {line["event"] for line in Run.open(self.folder).metrics() if line["event"] in ("finish", "stopped")}
        if events:
            return "finished" if "finish" in events else "stopped"
        return "begun" if any((self.folder / "checkpoints").glob("step-*/manifest.json")) else "new"


def perform(unit: Unit) -> None:
    """Train, or go on with what was begun; the unit's folder then holds the outcome.

    Raises:
        UserError: what training raises; a folder that another process works on.
    """
    from thalweg.sessions.train import resume, train

    state = unit.state()
    if state == "begun":
        resume(unit.folder, quiet=True, show=False)
    elif state == "new":
        if unit.folder.exists():
            run = Run(unit.folder)
            run.lock()  # fails while somebody else is at it
            shutil.rmtree(unit.folder)
            run.close()
        train(unit.recipe, unit.folder, quiet=True, plan=unit.plan, show=False)
    if unit.state() == "finished":
        # What is compared are numbers; the weights of dozens of runs would fill a disk.
        shutil.rmtree(unit.folder / "checkpoints", ignore_errors=True)
