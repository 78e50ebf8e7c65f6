"""What a result depends on besides its recipe: the code that ran, as a hash.

A run is reused only while the sources of the loop and of the methods that it names are the same, byte for byte. A race
is up to date while those of its methods are: changes of the loop do not make it stale. A function is up to date while
those of its methods, of the loop and of what else it imports are.
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


def loop_files(modules: Iterable[str] = ()) -> set[Path]:
    """The files of the loop's rooms that a run goes through, or that these modules import, however indirectly."""
    reached = _reached({"thalweg.sessions.train", *modules}, "thalweg.")
    return {path for path in reached if path.relative_to(PACKAGE).parts[0] in LOOP}


def function_files(module: str, methods: Iterable[str]) -> set[Path]:
    """What a claim's function depends on: its file, those of its folder and of the loop's rooms that it imports."""
    own = _reached({module}, module.rpartition(".")[0] + ".")
    return own | loop_files([module, *map(module_of, methods)])


def loop_hash(names: Iterable[str]) -> str:
    """Of the files of the loop that a run with these methods goes through."""
    return hash_of(loop_files(module_of(name) for name in names))


def method_hash(names: Iterable[str]) -> str:
    """Of the files of these methods, and of those of their families that these import."""
    return hash_of({path for name in names for path in method_files(name)})


def method_files(name: str) -> set[Path]:
    """The file of a method, and the files of its family that it imports, however indirectly."""
    return _reached({module_of(name)}, f"thalweg.methods.{catalog.lookup(name).family}.")


def module_of(name: str) -> str:
    """The module that a method lives in."""
    card = catalog.lookup(name)
    return f"thalweg.methods.{card.family}.{card.object.split(':')[0]}"


def _reached(modules: set[str], prefix: str) -> set[Path]:
    """The files of these modules, and of those with this prefix that they import, however indirectly."""
    found: set[Path] = set()
    waiting = set(modules)
    while waiting:
        path = _file(waiting.pop())
        if path not in found:
            found.add(path)
            waiting |= {module for module in _imported(path) if module.startswith(prefix)}
    return found


def _file(module: str) -> Path:
    """Of a module of this package: a file, or a folder's."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imported(path: Path) -> frozenset[str]:
    """The modules of this package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name may be a module itself.
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module} | {module for module in within if _is_module(module)}
    return frozenset(module for module in found if _is_module(module))


def _is_module(module: str) -> bool:
    return module.startswith("thalweg.") and _file(module).is_file()
