"""The arrows between the rooms point down only: read from the imports of every file, those inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "thalweg"

# From the bottom to the top: a room may import what stands in a row below its own, and beside it only what BESIDE says.
ROWS = (
    ("errors", "cache"),
    ("budget", "catalog"),
    ("arms",),
    ("recipe",),
    ("runs",),
    ("laws", "data", "models", "methods", "numerics"),
    ("training",),
    ("planner", "reports"),
    ("sessions",),
    ("arena",),
    ("cli",),
    ("__main__",),
)
BESIDE = {("methods", "models"), ("methods", "numerics"), ("models", "numerics")}
HEIGHT = {room: height for height, row in enumerate(ROWS) for room in row}


def imports(source: str) -> Iterator[tuple[str, ...]]:
    """Every module of this package that a file's text imports, as the parts of its name after `thalweg`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this house"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "thalweg")


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def arrows() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(file, its room, what it imports) for every import from another room."""
    for path in files():
        name = path.relative_to(PACKAGE).as_posix()
        room = name.split("/")[0].removesuffix(".py")
        for target in imports(path.read_text(encoding="utf-8")):
            if target and target[0] in HEIGHT and target[0] != room:
                yield name, room, target


def test_every_room_has_its_place():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()}
    assert rooms == set(HEIGHT), "a new room needs a row in ROWS and a line in docs/architecture.md"


def test_arrows_point_down():
    found = list(arrows())
    assert len(found) > 100
    wrong = [
        (name, target)
        for name, room, target in found
        if HEIGHT[target[0]] >= HEIGHT[room] and (room, target[0]) not in BESIDE
    ]
    assert wrong == []


def test_methods_are_found_by_name_only():
    """No room imports a method: names become objects through the catalogue."""
    assert [arrow for arrow in arrows() if arrow[2][0] == "methods"] == []


def test_a_method_stays_in_its_family():
    """A method may use models, numerics and what is below them; the loop and other families never."""
    families = sorted(path.parent.name for path in PACKAGE.glob("methods/*/cards.toml"))
    assert len(families) >= 6
    wrong = []
    for family in families:
        for path in sorted((PACKAGE / "methods" / family).rglob("*.py")):
            for target in imports(path.read_text(encoding="utf-8")):
                elsewhere = target[0] == "methods" and target[1:2] not in ((family,), ("lazy_objects",))
                if elsewhere or HEIGHT.get(target[0], 0) > HEIGHT["methods"]:
                    wrong.append((path.name, target))
    assert wrong == []


def test_the_reader_of_imports_sees_them():
    """The tests above are worth nothing if this does not hold."""
    source = (
        "import os, thalweg.data.store\ndef f():\n    from thalweg import catalog\n    from thalweg.cli.app import app"
    )
    assert sorted(imports(source)) == [("catalog",), ("cli", "app", "app"), ("data", "store")]
