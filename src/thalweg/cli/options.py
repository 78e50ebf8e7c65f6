"""What `train` and `plan` have in common: from the words on the command line to a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.errors import RecipeError

if TYPE_CHECKING:
    from thalweg.recipe import Recipe

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def recipe_from(source: str | None, arm: str | None, said: dict[str, Any], settings: list[str]) -> Recipe:
    """A recipe from a TOML file or a corpus, an arm, options and `--set key=value` pairs.

    Args:
        source: a recipe (*.toml), a corpus, or None for the embedded corpus.
        arm: choices that replace the recipe's.
        said: dotted keys of what options said; None where an option was not used.
        settings: "training.clip=0.5" and the like.
    """
    import tomllib

    from thalweg.recipe import Recipe, parse_arm

    fields: dict[str, Any] = {}
    where = "command line"
    if source and source.endswith(".toml"):
        fields, where = tomllib.loads(Recipe.read(source).toml()), source
    elif source:
        fields["data"] = {"corpus": source if ":" in source or source == "stdlib" else str(Path(source))}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"cannot read {setting!r}", where="--set", fix="Write --set training.clip=0.5.")
        said = {**said, key.strip(): _toml_value(value)}
    for key, value in said.items():
        if value is not None:
            *tables, last = key.split(".")
            table = fields
            for name in tables:
                table = table.setdefault(name, {})
                if not isinstance(table, dict):
                    raise RecipeError(f"{name} is no table", where=f"--set {key}", fix="`thalweg train --help`.")
            table[last] = value
    if arm:
        fields |= parse_arm(arm)
    return Recipe.validated(fields, where=where)


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
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if not found:
        raise RecipeError(f"cannot read the memory {text!r}", where="--memory", fix="Write it as 8GB or 6GiB.")
    return float(found.group(1)) * _UNITS[found.group(2)]
