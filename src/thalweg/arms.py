"""Arms: the `+`-joined spelling of a recipe's choices, each `name` or `name:key=value,key=value`."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from thalweg import catalog
from thalweg.catalog import ONE_PLACE_SLOTS, Value
from thalweg.errors import RecipeError


class Strict(BaseModel):
    """Unknown keys are errors; values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class Choice(Strict):
    """A method by name, with the options that differ from its card's defaults."""

    # The card checks the values, in words of its own; pydantic lets numbers of every kind through.
    model_config = ConfigDict(allow_inf_nan=True)

    name: str
    options: dict[str, Value] = {}

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """Accept "wsd", {"name": "wsd", "decay": 0.2} (TOML) and {"name": ..., "options": {...}}."""
        if isinstance(value, str):
            return parse_choice(value).model_dump()
        if isinstance(value, dict) and "options" not in value:
            return {"name": value.get("name"), "options": {k: v for k, v in value.items() if k != "name"}}
        return value

    @model_validator(mode="after")
    def _checked(self) -> Choice:
        card = catalog.lookup(self.name, where="recipe")
        if card.slot == "procedure":
            function = card.object.split(":")[1]
            raise RecipeError(
                f"{card.name} is a procedure, which has no place in a recipe",
                where="recipe",
                fix=f"Call it from Python: thalweg.methods.{card.family}.{function}; "
                f"docs/methods/{card.family}.md shows how.",
            )
        object.__setattr__(self, "options", card.check(self.options, where="recipe"))
        return self

    @property
    def slot(self) -> str:
        return catalog.lookup(self.name).slot

    def __str__(self) -> str:
        options = ",".join(f"{key}={_spell(value)}" for key, value in sorted(self.options.items()))
        return f"{self.name}:{options}" if options else self.name

    def table(self) -> dict[str, Value]:
        """The TOML form: the name and the options side by side."""
        return {"name": self.name, **dict(sorted(self.options.items()))}

    def build(self, *arguments: Any, **extra: Any) -> Any:
        """Import the method and construct it with the recipe's options."""
        return catalog.resolve(self.name)(*arguments, **extra, **self.options)


def _spell(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if not value or re.search(r'[+,="]', value) or _value(value) != value:
            raise RecipeError(
                f"the text {value!r} cannot be spelled in an arm",
                fix="Write this recipe as a TOML file instead.",
            )
        return value
    return repr(value).replace("e+", "e")


def _value(text: str) -> Value:
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


def parse_choice(text: str) -> Choice:
    name, colon, rest = text.strip().partition(":")
    options: dict[str, Value] = {}
    for pair in rest.split(",") if colon else []:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key or not value.strip():
            raise RecipeError(
                f"cannot read the option {pair.strip()!r}",
                where=f"arm {text!r}",
                fix="Write name:key=value,key=value.",
            )
        if key in options:
            raise RecipeError(f"{key} is given twice", where=f"arm {text!r}", fix="Keep one of the two.")
        options[key] = _value(value)
    return Choice(name=name.strip(), options=options)


def parse_arm(arm: str) -> dict[str, Any]:
    """Sort an arm's choices into slots: `"muon+wsd:decay=0.2"` -> {"optimizer": Choice, "schedule": Choice}."""
    slots: dict[str, Any] = {}
    seen: dict[str, str] = {}
    # A plus sign joins methods only before a letter: 1e+5 is a number.
    for part in re.split(r"\+\s*(?=[A-Za-z_])", arm):
        if not part.strip():
            raise RecipeError("an arm names no method here", where=f"arm {arm!r}", fix="Write name+name:key=value.")
        choice = parse_choice(part)
        if choice.slot == "compression":
            raise RecipeError(
                f"{choice.name} compresses a model that is trained already",
                where=f"arm {arm!r}",
                fix=f"thalweg compress MODEL --with {choice.name}",
            )
        if choice.name in seen:
            raise RecipeError(f"{choice.name} is named twice", where=f"arm {arm!r}", fix="Name it once.")
        seen[choice.name] = choice.slot
        if choice.slot in ONE_PLACE_SLOTS and choice.slot in slots:
            raise RecipeError(
                f"{slots[choice.slot].name} and {choice.name} both want the one {choice.slot} slot",
                where=f"arm {arm!r}",
                fix="Keep one of them.",
            )
        if choice.slot in ONE_PLACE_SLOTS:
            slots[choice.slot] = choice
        else:
            slots.setdefault(choice.slot, []).append(choice)
    return slots


def parse_steps(text: str) -> list[Choice]:
    """The steps of a compression in their order: "wanda:sparsity=0.5+gptq:bits=4".

    Raises:
        RecipeError: a step that cannot be read, or a method that compresses nothing.
    """
    if text.strip("+ ") and text.rstrip().endswith("+"):
        raise RecipeError("no step follows the last +", where=f"steps {text!r}", fix="Name one, or leave the + out.")
    steps = [parse_choice(part) for part in re.split(r"\+\s*(?=[A-Za-z_])", text) if part.strip("+ ")]
    for step in steps:
        if step.slot != "compression":
            known = ", ".join(name for name, card in catalog.load().items() if card.slot == "compression")
            raise RecipeError(f"{step.name} compresses no model", where=f"steps {text!r}", fix=f"Steps: {known}.")
    if not steps:
        raise RecipeError("no step is named", where=f"steps {text!r}", fix='Write "wanda:sparsity=0.5+gptq:bits=4".')
    return steps


def choices_of(arm: str) -> list[Choice]:
    """All that an arm names, callbacks side by side with the slots that have one place."""
    return [choice for value in parse_arm(arm).values() for choice in (value if isinstance(value, list) else [value])]


def parse_schedule(arm: str, *, where: str, fix: str) -> Choice:
    """The schedule that an arm names, where it may name nothing else. `where` and `fix` are for who asked.

    Raises:
        RecipeError: an arm of another method, or of more than one.
    """
    choices = choices_of(arm)
    if [choice.slot for choice in choices] != ["schedule"]:
        raise RecipeError(f"{arm!r} is not one schedule", where=where, fix=fix)
    return choices[0]
