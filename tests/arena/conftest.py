"""A tiny workload on the small corpus, and a way to run comparisons of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thalweg.arena.compare import compare
from thalweg.arena.comparison import Comparison
from thalweg.arena.workload import Workload

SETTINGS = {
    "data.tokenizer": "bpe:512",
    "data.context": 32,
    "data.held_out": 0.1,
    "training.batch_size": 8,
    "training.checkpoint_every": "4 steps",
}


@pytest.fixture
def workload(corpus: Path, tmp_path: Path) -> Workload:
    """12 steps of the smallest model, planned for adamw+linear."""
    made = Workload("0.2M", str(corpus), "12 steps", SETTINGS, tmp_path / "runs")
    made.prepare("adamw+linear")
    return made


@pytest.fixture
def meet(corpus: Path, tmp_path: Path) -> Callable[..., Comparison]:
    """`compare` on the tiny workload, two runs at a time."""

    def run(*arms: str, **options: Any) -> Comparison:
        said = {
            "budget": "12 steps",
            "model": "0.2M",
            "corpus": str(corpus),
            "seeds": 2,
            "settings": SETTINGS,
            "jobs": 2,
            "runs": tmp_path / "runs",
            "out": tmp_path / "out",
            "quiet": True,
        }
        return compare(arms, **{**said, **options})

    return run
