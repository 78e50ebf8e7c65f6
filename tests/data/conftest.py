"""Small corpora and a store that the tests of this room share."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from thalweg.data import TokenStore, prepare

WORDS = ["the", "valley", "river", "water", "stone", "über", "naïve", "42", "return", "self.value", "(x+1)"]
WORDS += ["don't", "it's\n\n", "", "", "", "日本", "émile,", "end"]


def make_text(seed: int, words: int) -> str:
    """Deterministic text with punctuation, line ends and letters beyond ASCII."""
    chooser = random.Random(seed)
    return " ".join(chooser.choice(WORDS) for _ in range(words))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus of 40 small documents in a folder."""
    root = tmp_path / "corpus"
    (root / "deep" / "er").mkdir(parents=True)
    for number in range(40):
        place = root / ("deep/er" if number % 3 else ".") / f"{number:02d}.txt"
        place.write_text(make_text(number, 60), encoding="utf-8")
    return root


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> TokenStore:
    """The store of `folder`, with shards of 500 tokens so that reads cross them."""
    return prepare(
        folder, tokenizer="bpe:300", held_out=0.2, cache=tmp_path / "cache", progress=False, shard_tokens=500
    )
