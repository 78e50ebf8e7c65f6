"""What a claim that is no training race comes back with, and how a card's words become its function.

A card says `function = "module:name"`; the module is a file of this folder, and the function is

    def name(seed: int = 0) -> Finding

deterministic, and done within a minute or two on one core, once the model that some of them share is there
(`trained.py`). Nothing outside this folder can be named.
"""

from __future__ import annotations

import importlib
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thalweg.errors import ArenaError

FOLDER = Path(__file__).parent

Number = float | int | str | None | list[float]


@dataclass(frozen=True)
class Finding:
    """What was found.

    Args:
        numbers: what was measured, by name.
        holds: whether the claim holds here; None where the measurement cannot tell.
        sentence: the finding in one sentence for readers, numbers included.
    """

    numbers: Mapping[str, Number]
    holds: bool | None
    sentence: str


def paired(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Mean of the paired differences and its standard error, infinite for a single pair."""
    differences = [a - b for a, b in zip(one, other, strict=True)]
    deviation = statistics.stdev(differences) if len(differences) > 1 else math.inf
    return statistics.fmean(differences), deviation / math.sqrt(len(differences))


def file_of(function: str) -> Path:
    """The file in which "module:name" lives; `ArenaError` where the text has another form or there is no such file."""
    found = re.fullmatch(r"([a-z_][a-z0-9_]*):[a-z_][a-z0-9_]*", function)
    path = FOLDER / f"{found.group(1)}.py" if found else FOLDER
    if not path.is_file():
        raise ArenaError(
            f"there is no claim function {function!r}",
            where="card, claim",
            fix="Write module:name, where module is a file of thalweg/arena/claims/.",
        )
    return path


def find(function: str) -> Callable[..., Finding]:
    """Import the function that "module:name" stands for.

    Raises:
        ArenaError: no such module in `thalweg/arena/claims/`, or no such function in it.
    """
    path = file_of(function)
    name = function.partition(":")[2]
    found = getattr(importlib.import_module(f"thalweg.arena.claims.{path.stem}"), name, None)
    if not callable(found):
        raise ArenaError(f"{path.name} has no function {name!r}", where="card, claim")
    return found
