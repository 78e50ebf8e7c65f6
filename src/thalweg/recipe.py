"""One experiment as data: what to spend (Budget), what to train on, and one choice per slot (Recipe, arms).

`Recipe.parse("muon+wsd:decay=0.2", budget="300 steps")` and the TOML file that `recipe.toml` gives say the same.
Whatever a recipe leaves open (`None` or "auto") is the planner's to decide.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, field_validator

from thalweg.arms import Choice, Strict, parse_arm, parse_choice
from thalweg.budget import Budget
from thalweg.catalog import ONE_PLACE_SLOTS, suggest
from thalweg.errors import RecipeError

# What `thalweg train` does when nothing is said: chosen by measurement, see benchmarks/README.md, "The default arm".
DEFAULTS = {"optimizer": "muon", "schedule": "wsd:decay=0.4", "objective": "cross_entropy"}

BudgetField = Annotated[
    Budget, BeforeValidator(lambda v: v if isinstance(v, Budget) else Budget.parse(v)), PlainSerializer(str)
]


def default_choice(slot: str) -> Choice:
    """What stands in a slot that a recipe does not name."""
    return parse_choice(DEFAULTS[slot])


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


class Start(Strict):
    """Where a run goes on from: another run's checkpoint. `thalweg extend` writes this."""

    run: str = Field(description="folder of the run that is continued; never modified")
    step: int = Field(ge=0, description="its checkpoint")
    tokens: int = Field(0, ge=0, description="tokens trained on before, over the whole lineage")
    skip: int = Field(0, ge=0, description="batches of the corpus that were used before")
    corpus: str | None = Field(None, description="the corpus before, to be replayed")
    replay: float = Field(0.0, ge=0, lt=1, description="share of every batch drawn from it")


class Recipe(Strict):
    """One experiment. See the module's docstring; every field has a default."""

    budget: BudgetField = Budget(120.0, "seconds")
    seed: int = Field(0, ge=0, lt=2**63)
    model: str = Field("auto", description="'auto', a size such as '5M', or a Hugging Face model folder")
    laws: str = Field("auto", min_length=1, description="'auto', 'built-in' or a laws.json of a wind tunnel")
    data: Data = Data()
    training: Training = Training()
    optimizer: Choice = Field(default_factory=lambda: default_choice("optimizer"))
    schedule: Choice = Field(default_factory=lambda: default_choice("schedule"))
    objective: Choice = Field(default_factory=lambda: default_choice("objective"))
    reweighting: Choice | None = None
    callbacks: tuple[Choice, ...] = ()
    start: Start | None = None

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
    def choices(self) -> list[Choice]:
        """Every method that takes part."""
        one_place = [getattr(self, slot) for slot in ONE_PLACE_SLOTS]
        return [choice for choice in [*one_place, *self.callbacks] if choice is not None]

    @property
    def arm(self) -> str:
        """The canonical `+`-joined spelling of the choices."""
        return "+".join(map(str, self.choices))

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
        if self.laws != "auto":
            table["laws"] = self.laws
        table["data"] = self.data.model_dump(exclude_none=True)
        table["training"] = self.training.model_dump(exclude_none=True)
        for slot in ONE_PLACE_SLOTS:
            choice = getattr(self, slot)
            if choice is not None:
                table[slot] = choice.table()
        if self.start is not None:
            table["start"] = self.start.model_dump(exclude_none=True)
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
