"""One experiment as data: what to spend (Budget), what to train on, and one choice per slot (Recipe, arms).

`Recipe.parse("muon+wsd:decay=0.2", budget="300 steps")` and the TOML file that `recipe.toml` gives say the same.
Whatever a recipe leaves open (`None` or "auto") is the planner's to decide.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from thalweg import catalog
from thalweg.budget import Budget
from thalweg.catalog import ONE_PLACE_SLOTS, Value, suggest
from thalweg.errors import RecipeError

# What `thalweg train` does when nothing is said: chosen by measurement, see benchmarks/README.md, "The default arm".
DEFAULTS = {"optimizer": "muon", "schedule": "wsd:decay=0.4", "objective": "cross_entropy"}

BudgetField = Annotated[
    Budget, BeforeValidator(lambda v: v if isinstance(v, Budget) else Budget.parse(v)), PlainSerializer(str)
]


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
            return _parse_choice(value).model_dump()
        if isinstance(value, dict) and "options" not in value:
            return {"name": value.get("name"), "options": {k: v for k, v in value.items() if k != "name"}}
        return value

    @model_validator(mode="after")
    def _checked(self) -> Choice:
        card = catalog.lookup(self.name, where="recipe")
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


def default_choice(slot: str) -> Choice:
    """What stands in a slot that a recipe does not name."""
    return _parse_choice(DEFAULTS[slot])


def _spell(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if not value or re.search(r'[+,:="]', value) or _value(value) != value:
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


def _parse_choice(text: str) -> Choice:
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
        choice = _parse_choice(part)
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


class Data(Strict):
    """Where the tokens come from."""

    corpus: str = Field("stdlib", description="'stdlib', a file, a folder or hf:owner/name")
    field: str = Field("text", description="the field or column that holds the text in .jsonl and .parquet")
    tokenizer: str = Field("auto", description="'auto', 'bpe:4096' or a Hugging Face tokenizer folder")
    held_out: float = Field(0.05, gt=0, lt=1, description="share of the documents kept for evaluation")
    evaluate_on: Literal["all", "reporting", "tuning"] = Field("all", description="which half of those is looked at")
    context: int | None = Field(None, ge=8, description="tokens a window")


class Training(Strict):
    """How the loop runs; `None` and "auto" are the planner's to decide."""

    batch_size: int | None = Field(None, ge=1, description="windows a step, over all ranks")
    micro_batch: int | None = Field(None, ge=1, description="windows a forward pass, a rank")
    peak_lr: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    shard: bool = Field(False, description="FSDP2 instead of DDP under torchrun")
    checkpoint_every: BudgetField | None = Field(None, description="a budget, such as '100 steps' or '5min'")
    evaluate_every: BudgetField | None = Field(None, description="a budget, such as '100 steps' or '5min'")
    keep: int = Field(2, ge=1, description="checkpoints kept")


class Recipe(Strict):
    """One experiment. See the module's docstring; every field has a default."""

    budget: BudgetField = Budget(120.0, "seconds")
    seed: int = Field(0, ge=0, lt=2**63)
    model: str = Field("auto", description="'auto', a size such as '5M', or a Hugging Face model folder")
    data: Data = Data()
    training: Training = Training()
    optimizer: Choice = Field(default_factory=lambda: default_choice("optimizer"))
    schedule: Choice = Field(default_factory=lambda: default_choice("schedule"))
    objective: Choice = Field(default_factory=lambda: default_choice("objective"))
    reweighting: Choice | None = None
    callbacks: tuple[Choice, ...] = ()

    @field_validator(*ONE_PLACE_SLOTS)
    @classmethod
    def _right_slot(cls, choice: Choice | None, info: Any) -> Choice | None:
        if choice is not None and choice.slot != info.field_name:
            raise RecipeError(
                f"{choice.name} is no {info.field_name}",
                where=f"recipe, {info.field_name}",
                fix=f"It belongs under {choice.slot}.",
            )
        return choice

    @field_validator("callbacks")
    @classmethod
    def _callbacks(cls, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        names = [choice.name for choice in choices]
        for choice in choices:
            if choice.slot != "callbacks":
                raise RecipeError(
                    f"{choice.name} is no callback",
                    where="recipe, callbacks",
                    fix=f"It belongs under {choice.slot}.",
                )
            if names.count(choice.name) > 1:
                raise RecipeError(f"{choice.name} is named twice", where="recipe, callbacks", fix="Name it once.")
        # One order, so that two spellings of the same experiment are the same experiment.
        return tuple(sorted(choices, key=lambda choice: choice.name))

    @property
    def arm(self) -> str:
        """The canonical `+`-joined spelling of the choices."""
        one_place = [getattr(self, slot) for slot in ONE_PLACE_SLOTS]
        return "+".join(str(choice) for choice in [*one_place, *self.callbacks] if choice is not None)

    @classmethod
    def parse(cls, arm: str = "", **fields: Any) -> Recipe:
        """A recipe from an arm and the other fields (`budget="2min"`, `data={"corpus": ...}`, `seed=1`)."""
        return cls.validated({**fields, **(parse_arm(arm) if arm.strip() else {})}, where="recipe")

    @classmethod
    def validated(cls, fields: dict[str, Any], *, where: str) -> Recipe:
        """Validate plain data; every mistake becomes a `RecipeError` that names the key and what is allowed."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _explained(error, where) from None

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read and validate a TOML recipe."""
        try:
            fields = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"cannot read the recipe: {error.strerror}", where=str(path)) from None
        except UnicodeDecodeError:
            raise RecipeError("the recipe is not UTF-8 text", where=str(path)) from None
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"the recipe is not valid TOML: {error}", where=str(path)) from None
        return cls.validated(fields, where=str(path))

    def toml(self) -> str:
        """The recipe as TOML; fields left to the planner are left out."""
        table: dict[str, Any] = {"budget": str(self.budget), "seed": self.seed, "model": self.model}
        table["data"] = self.data.model_dump(exclude_none=True)
        table["training"] = self.training.model_dump(exclude_none=True)
        for slot in ONE_PLACE_SLOTS:
            choice = getattr(self, slot)
            if choice is not None:
                table[slot] = choice.table()
        if self.callbacks:
            table["callbacks"] = [choice.table() for choice in self.callbacks]
        return tomli_w.dumps(table)


def put(fields: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, such as "training.clip", in the plain data of a recipe."""
    *tables, last = key.split(".")
    for name in tables:
        fields = fields.setdefault(name, {})
        if not isinstance(fields, dict):
            raise RecipeError(f"{name} is no table", where=key, fix="`thalweg train --help` lists the keys.")
    fields[last] = value


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Recipe
    for part in location[:-1]:
        known = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = known.annotation if known else None
    return list(getattr(model, "model_fields", {}))


def _explained(error: ValidationError, where: str) -> RecipeError:
    """The first mistake of a pydantic error, in the house's words."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"])
        fix = suggest(str(first["loc"][-1]), known) or f"Known keys: {', '.join(known)}."
        return RecipeError(f"there is no key {key!r}", where=where, fix=fix)
    message = str(cause) if cause else first["msg"][0].lower() + first["msg"][1:]
    return RecipeError(f"{key} = {first['input']!r}: {message}", where=where)
