"""What many tests need: a small corpus, a cache of their own, one torch thread a worker."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

_SENTENCES = (
    "the valley water stone river bends low under old bridge light falls",
    "where reeds grow and stream finds its way",
)
_WORDS = " ".join(_SENTENCES).split()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 120 documents, 150 kB, of sentences that a small model can learn something of."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for index in range(120):
        sentences = [
            " ".join(rng.choice(_WORDS) for _ in range(rng.randint(4, 12))).capitalize() + "." for _ in range(28)
        ]
        (folder / f"{index:03d}.txt").write_text(f"Chapter {index}\n\n" + " ".join(sentences) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder shared by all workers of this test session, away from the user's own."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "thalweg-cache"
    shared.mkdir(exist_ok=True)
    os.environ["THALWEG_CACHE"] = str(shared)
    return shared


@pytest.fixture
def small(corpus: Path):  # type: ignore[no-untyped-def]
    """Makes recipes of a tiny model on the small corpus; dotted keys override."""
    from thalweg.recipe import Recipe

    def make(arm: str = "", **changes):  # type: ignore[no-untyped-def]
        fields = {
            "budget": "12 steps",
            "model": "0.2M",
            "data": {"corpus": str(corpus), "tokenizer": "bpe:512", "context": 32, "held_out": 0.1},
            "training": {"batch_size": 8, "peak_lr": 0.005, "weight_decay": 0.1, "checkpoint_every": "4 steps"},
        }
        for key, value in changes.items():
            table, _, name = key.rpartition("__")
            (fields[table] if table else fields)[name or key] = value
        return Recipe.parse(arm, **fields)

    return make
