"""What `train` and `plan` have in common: from the words on the command line to a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.budget import parse_bytes
from thalweg.errors import RecipeError

if TYPE_CHECKING:
    from thalweg.recipe import Recipe


def recipe_from(source: str | None, arm: str | None, said: dict[str, Any], settings: list[str]) -> Recipe:
    """A recipe from a TOML file or a corpus, an arm, options and `--set key=value` pairs.

    Args:
        source: a recipe (*.toml), a corpus, or None for the embedded corpus.
        arm: choices that replace the recipe's.
        said: dotted keys of what options said; None where an option was not used.
        settings: "training.clip=0.5" and the like.
    """
    import tomllib

    from thalweg.recipe import Recipe, parse_arm, put

    fields: dict[str, Any] = {}
    where = "command line"
    if source and source.endswith(".toml"):
        fields, where = tomllib.loads(Recipe.read(source).toml()), source
    elif source:
        fields["data"] = {"corpus": source if ":" in source or source == "stdlib" else str(Path(source))}
    for key, value in {**said, **pairs(settings)}.items():
        if value is not None:
            put(fields, key, value)
    if arm:
        fields |= parse_arm(arm)
    return Recipe.validated(fields, where=where)


def pairs(settings: list[str]) -> dict[str, Any]:
    """["training.clip=0.5"] -> {"training.clip": 0.5}."""
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"cannot read {setting!r}", where="--set", fix="Write --set training.clip=0.5.")
        found[key.strip()] = _toml_value(value)
    return found


def share(text: str, where: str) -> float:
    """ "0.2%" or "0.002" as 0.002."""
    number, percent = (text.strip().removesuffix("%"), text.strip().endswith("%"))
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise RecipeError(f"cannot read the share {text!r}", where=where, fix="Write 0.2% or 0.002.")
    return value


def _toml_value(text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def memory_bytes(text: str | None) -> float | None:
    """ "8GB" or "6GiB" in bytes."""
    if text is None:
        return None
    found = parse_bytes(text)
    if found is None:
        raise RecipeError(f"cannot read the memory {text!r}", where="--memory", fix="Write it as 8GB or 6GiB.")
    return found
