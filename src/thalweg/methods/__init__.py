"""The published ideas: a folder a family, a file a method, one `cards.toml` a family.

A method is plain PyTorch and needs no trainer: `from thalweg.methods.schedules import WSD` is enough.
Which names a family offers is read from its cards, so a new method is two files: its own and the card.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_objects(package: str, cards: Path) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Module-level `__getattr__` and `__dir__` that import a family's objects on first use.

    Args:
        package: the family's import name, such as `thalweg.methods.schedules`.
        cards: the family's `cards.toml`.
    """
    targets: dict[str, str] = {}

    def read() -> dict[str, str]:
        if not targets:
            with cards.open("rb") as file:
                for card in tomllib.load(file).values():
                    module, _, attribute = card["object"].partition(":")
                    targets[attribute] = module
        return targets

    def get(name: str) -> Any:
        # Names with underscores are asked for by the import system and by debuggers; they are never methods.
        if name.startswith("_") or name not in read():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{targets[name]}"), name)

    return get, lambda: sorted(read())
