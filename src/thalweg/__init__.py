"""Thalweg: the lowest loss that a budget allows, and what each published idea is worth on the way.

The names that a user imports first; everything heavy is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Budget": "thalweg.budget",
    "Clock": "thalweg.training.clock",
    "Comparison": "thalweg.arena.comparison",
    "Recipe": "thalweg.recipe",
    "Result": "thalweg.sessions.train",
    "Run": "thalweg.runs",
    "UserError": "thalweg.errors",
    "compare": "thalweg.arena.compare",
    "compress": "thalweg.sessions.compress",
    "make_plan": "thalweg.sessions.train",
    "prepare": "thalweg.data",
    "resume": "thalweg.sessions.train",
    "train": "thalweg.sessions.train",
    "wind_tunnel": "thalweg.arena.wind_tunnel",
    "write_report": "thalweg.reports",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
