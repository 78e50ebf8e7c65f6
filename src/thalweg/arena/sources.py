"""What a result depends on besides its recipe: the code that ran, as a hash.

A run is reused only while the sources of the loop and of the methods that it names are the same, byte for byte. A claim
is up to date while those of its methods are (and of its function); changes of the loop do not make it stale.
"""

from __future__ import annotations

import ast
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
    """Of the files of these methods, and of those of their families that these import."""
    return hash_of({path for name in names for path in method_files(name)})


def method_files(name: str) -> set[Path]:
    """The file of a method, and the files of its family that it imports, however indirectly."""
    card = catalog.lookup(name)
    family = f"thalweg.methods.{card.family}"
    found: set[Path] = set()
    waiting = {f"{family}.{card.object.split(':')[0]}"}
    while waiting:
        path = _file(waiting.pop())
        if path not in found:
            found.add(path)
            waiting |= {module for module in _imported(path) if module.startswith(f"{family}.")}
    return found


def _file(module: str) -> Path:
    """Of a module of this package: a file, or a folder's."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name may be a module itself.
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module} | {module for module in within if _is_module(module)}
    return {module for module in found if _is_module(module)}


def _is_module(module: str) -> bool:
    return module.startswith("thalweg.") and _file(module).is_file()
