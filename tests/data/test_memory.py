"""Building a store takes memory for batches, not for the corpus. Measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_MEASURE = """
import resource, sys
from pathlib import Path
from thalweg.data import prepare

def peak():  # KiB: this process and, of its ended children, the largest
    return [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]

small, big, cache = map(Path, sys.argv[1:])
prepare(small, tokenizer="bpe:1000", cache=cache, progress=False, workers=2)
before = peak()
store = prepare(big, tokenizer="bpe:1000", cache=cache, progress=False, workers=2)
after = peak()
print(after[0] - before[0] + 2 * (after[1] - before[1]), store.train.byte_count + store.held_out.byte_count)
"""


def write_lines(path: Path, megabytes: int) -> None:
    """Text of new words without end, which is the hardest case for a word cache."""
    with open(path, "w") as file:
        for block in range(megabytes):
            for number in range(10_000):
                word = hex((block * 10_000 + number) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFF)
                line = f"the river of {word} runs down; {number} stones lie still in the water of the valley, and"
                file.write(f"{line:<99}\n")


def growth(tmp_path: Path, megabytes: int) -> tuple[float, int]:
    """Growth of all processes together, in MiB, and the bytes tokenized."""
    write_lines(tmp_path / "small.txt", 2)
    write_lines(tmp_path / "big.txt", megabytes)
    command = [sys.executable, "-c", _MEASURE, tmp_path / "small.txt", tmp_path / "big.txt", tmp_path / "cache"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(said[0]) / 1024, int(said[1])


def test_memory_does_not_follow_the_corpus(tmp_path: Path) -> None:
    grown, size = growth(tmp_path, 24)
    assert size == 24_000_000
    assert grown < 130


@pytest.mark.slow
def test_memory_stays_bounded_on_a_large_corpus(tmp_path: Path) -> None:
    grown, size = growth(tmp_path, 200)
    assert size == 200_000_000
    assert grown < 150
