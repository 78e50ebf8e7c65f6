"""A run folder as a report sees it: whatever of its files can be read, and a sentence for each that cannot."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thalweg.errors import RunError
from thalweg.reports.formats import clean
from thalweg.reports.history import History, read_history

# A report is for reading; a file far beyond this is a mistake, and would end up in the page or in memory as a whole.
LARGEST_FILE = 64 * 2**20
SLOTS = ("optimizer", "schedule", "objective", "reweighting", "callbacks")


@dataclass(slots=True)
class Record:
    """A run folder's content. `problems` maps a file's name to what is wrong with it."""

    folder: Path
    recipe_text: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    history: History = field(default_factory=History)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def chosen(self) -> dict[str, Any]:
        """The plan's choice; empty without a plan."""
        return table(self.plan.get("chosen"))

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The models that the plan weighed."""
        return tables(self.plan.get("candidates"))

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The runs that this one goes on from, oldest first."""
        return tables(_json(self, "lineage.json", list)) if (self.folder / "lineage.json").is_file() else []

    @property
    def budget(self) -> str:
        """The budget as the plan or the recipe spells it; "" if neither does."""
        spelling = self.plan.get("budget") or self.recipe.get("budget")
        return spelling if isinstance(spelling, str) else ""

    @property
    def corpus(self) -> str:
        """What the run was trained on, as the plan or the recipe calls it."""
        return str(self.plan.get("corpus") or table(self.recipe.get("data")).get("corpus") or "")

    @property
    def arm(self) -> str:
        """The names of the recipe's choices, joined as in an arm (without their options)."""
        names: list[str] = []
        for slot in SLOTS:
            choices = self.recipe.get(slot)
            for choice in choices if isinstance(choices, list) else [choices]:
                name = choice.get("name") if isinstance(choice, dict) else choice
                if isinstance(name, str):
                    names.append(name)
        return "+".join(names)


def table(value: Any) -> dict[str, Any]:
    """The value if it is a table, else an empty one: files of a run may come from anywhere."""
    return value if isinstance(value, dict) else {}


def tables(value: Any) -> list[dict[str, Any]]:
    """The tables in a list; empty for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def read_record(folder: Path) -> Record:
    """Read a run folder. Missing or damaged files become `problems`.

    Raises:
        RunError: there is no such folder.
    """
    if not folder.is_dir():
        raise RunError(
            "there is no such run", where=str(folder), fix="Give the folder that holds recipe.toml and metrics.jsonl."
        )
    record = Record(folder)
    record.recipe_text = _text(record, "recipe.toml") or ""
    try:
        record.recipe = tomllib.loads(record.recipe_text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        record.problems["recipe.toml"] = f"recipe.toml is not valid TOML: {error}"
    record.plan = table(_json(record, "plan.json", dict))
    record.environment = table(_json(record, "environment.json", dict))
    record.samples = tables(_json(record, "samples.json", list))
    record.history = read_history(folder / "metrics.jsonl")
    if record.history.missing:
        record.problems["metrics.jsonl"] = "metrics.jsonl is missing: the run was stopped before its first step."
    return record


def _text(record: Record, name: str) -> str | None:
    path = record.folder / name
    try:
        if path.stat().st_size > LARGEST_FILE:
            record.problems[name] = f"{name} is too large to show."
            return None
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        record.problems[name] = f"{name} is missing: the run was stopped before it was written."
    except OSError as error:
        record.problems[name] = f"{name} cannot be read: {error.strerror}."
    return None


def _json(record: Record, name: str, kind: type) -> Any:
    text = _text(record, name)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        record.problems[name] = f"{name} is damaged: it is not valid JSON."
        return None
    if not isinstance(value, kind):
        record.problems[name] = clean(f"{name} does not hold what it should ({kind.__name__}).")
    return value
