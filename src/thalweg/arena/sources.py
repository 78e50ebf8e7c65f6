"""What a result depends on besides its recipe: the code that ran, as a hash.

A run is reused only while the sources of the loop and of the methods that it names are the same, byte for byte. A claim
is up to date while those of its methods are (and of its function); changes of the loop do not make it stale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from thalweg import catalog

PACKAGE = Path(catalog.__file__).parent
# Rooms whose code decides what a step computes.
LOOP = ("sessions", "training", "models", "data", "numerics")


def hash_of(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents, in the order of the names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def loop_files() -> list[Path]:
    """The files of the rooms that every run goes through."""
    return [path for room in LOOP for path in (PACKAGE / room).rglob("*.py")]


@cache
def loop_hash() -> str:
    """Of the rooms that every run goes through."""
    return hash_of(loop_files())


def method_hash(names: Iterable[str]) -> str:
    """Of the files of these methods, and of what their families share (files that are no method's own)."""
    return hash_of({path for name in names for path in method_files(name)})


def method_files(name: str) -> set[Path]:
    """The file of a method and the shared files of its family."""
    card = catalog.lookup(name)
    folder = catalog.METHODS / card.family
    own = folder / f"{card.object.split(':')[0].replace('.', '/')}.py"
    methods = {
        folder / f"{other.object.split(':')[0].replace('.', '/')}.py"
        for other in catalog.load().values()
        if other.family == card.family
    }
    return {own, *(path for path in folder.rglob("*.py") if path not in methods)}
