"""The catalogue of methods: cards as data, names to objects on demand.

Every family folder under `methods/` holds one `cards.toml`. Reading the cards imports no method (and no torch), so
listing, validating and writing recipes is instant; `resolve` imports the one module that a name stands for.
"""

from __future__ import annotations

import difflib
import importlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from thalweg.errors import RecipeError

ONE_PLACE_SLOTS = ("optimizer", "schedule", "objective", "reweighting")
# Two have no place in a recipe. A procedure is called from Python, with trainings or functions as arguments; a
# compression is a step of `thalweg compress`.
OUTSIDE_ARMS = ("procedure", "compression")
SLOTS = (*ONE_PLACE_SLOTS, "callbacks", *OUTSIDE_ARMS)
METHODS = Path(__file__).parent / "methods"

Value = bool | int | float | str


@dataclass(frozen=True)
class Option:
    """One constructor argument of a method that a recipe may set."""

    type: str
    default: Value
    help: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    search: Mapping[str, Any] | None = None

    def allowed(self) -> str:
        """What a value may be, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        bounds = [f"at least {self.low:g}"] if self.low is not None else []
        bounds += [f"at most {self.high:g}"] if self.high is not None else []
        kind = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text"}[self.type]
        return " ".join([kind, " and ".join(bounds)]).strip()

    def check(self, value: Value, *, where: str) -> Value:
        """Return `value` in the option's type; raise `RecipeError` when it is not allowed."""
        good = {
            "float": isinstance(value, int | float) and not isinstance(value, bool),
            "int": isinstance(value, int) and not isinstance(value, bool),
            "bool": isinstance(value, bool),
            "str": isinstance(value, str),
        }[self.type]
        if good and self.choices:
            good = value in self.choices
        if good and not isinstance(value, str | bool):
            # Written so that NaN, which compares false with everything, is refused too.
            good = -float("inf") < value < float("inf")
            good = good and (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        if not good:
            raise RecipeError(f"{value!r} is not allowed here", where=where, fix=f"Give {self.allowed()}.")
        return float(value) if self.type == "float" else value


@dataclass(frozen=True)
class Card:
    """What the catalogue knows of one method; see `docs/architecture.md` for the fields."""

    name: str
    family: str
    slot: str
    object: str
    title: str
    year: int
    idea: str
    paper_claim: str
    cost: str
    arxiv: str | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    claim: Mapping[str, Any] = field(default_factory=dict)
    # Optimizers: peak_lr measured at_width, width_exponent of its fall, weight_decay, lr_scale a kind of parameter.
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def check(self, options: Mapping[str, Value], *, where: str) -> dict[str, Value]:
        """Validate a recipe's options for this method; raise `RecipeError` for unknown names or wrong values."""
        for key in options:
            if key not in self.options:
                raise RecipeError(
                    f"{self.name} has no option {key!r}",
                    where=where,
                    fix=suggest(key, self.options) or f"Its options: {', '.join(self.options) or 'none'}.",
                )
        return {
            key: self.options[key].check(value, where=f"{where}, {self.name}:{key}") for key, value in options.items()
        }


def suggest(name: str, known: Iterable[str]) -> str:
    """`Did you mean ...?` for a misspelt name, or the empty string when nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.55)
    return f"Did you mean {' or '.join(near)}?" if near else ""


def _card(name: str, family: str, entry: dict[str, Any]) -> Card:
    options = {
        key: Option(**{**option, "choices": tuple(option["choices"]) if "choices" in option else None})
        for key, option in entry.pop("options", {}).items()
    }
    return Card(name=name, family=family, options=options, **entry)


@cache
def load() -> dict[str, Card]:
    """All cards by name, sorted by family and name."""
    cards: dict[str, Card] = {}
    for path in sorted(METHODS.glob("*/cards.toml")):
        for name, entry in sorted(tomllib.loads(path.read_text(encoding="utf-8")).items()):
            if name in cards:
                raise ValueError(f"two cards are named {name}: {cards[name].family} and {path.parent.name}")
            cards[name] = _card(name, path.parent.name, entry)
    return cards


def lookup(name: str, *, where: str = "arm") -> Card:
    """The card of a method; `RecipeError` with the nearest names when there is none."""
    cards = load()
    if name not in cards:
        fix = suggest(name, cards) or "`thalweg methods` lists them all."
        raise RecipeError(f"there is no method {name!r}", where=where, fix=fix)
    return cards[name]


def resolve(name: str) -> Any:
    """Import the object that a method's name stands for."""
    return getattr(module(name), lookup(name).object.split(":")[1])


def module(name: str) -> ModuleType:
    """Import the module that a method lives in, for what it offers beside its object."""
    card = lookup(name)
    return importlib.import_module(f"thalweg.methods.{card.family}.{card.object.split(':')[0]}")
