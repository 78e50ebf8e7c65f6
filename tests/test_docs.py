"""The documents are true where a machine can tell: commands parse, links lead somewhere, nothing is left out."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from thalweg import catalog
from thalweg.cli.app import app
from thalweg.cli.options import recipe_from
from thalweg.recipe import Choice, Recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PLANNED = "*planned*"


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    """What follows `thalweg` in every line of shell in the documents, `torchrun ... -m thalweg` included."""
    for document in DOCUMENTS:
        for block in blocks(document.read_text(encoding="utf-8"), "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["thalweg"] or (words[:1] == ["torchrun"] and "thalweg" in words):
                    yield words[words.index("thalweg") + 1 :]


@pytest.mark.parametrize("words", commands(), ids=shlex.join)
def test_command_lines_parse(words):
    verb, *arguments = words
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    said = command.make_context(verb, arguments).params
    if verb in ("train", "plan"):
        source = None if str(said["source"]).endswith(".toml") else said["source"]
        names = {"budget": "budget", "model": "model", "data.tokenizer": "tokenizer"}
        options = {key: said.get(name) for key, name in names.items()}
        assert recipe_from(source, said["arm"], options, said["settings"]).toml()


def test_there_are_commands():
    assert len(list(commands())) >= 25
    assert {words[0] for words in commands()} == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def anchors(text: str) -> set[str]:
    """The names that a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        page = (document.parent / path).resolve() if path else document
        assert page.is_file(), target
        assert page.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(page.read_text(encoding="utf-8")), target


def recipe_keys(model: type = Recipe, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, default) of every field of a recipe."""
    for name, field in model.model_fields.items():  # type: ignore[attr-defined]
        if hasattr(field.annotation, "model_fields") and not field.default_factory:
            yield from recipe_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.get_default(call_default_factory=True)


def spelled(default: object) -> set[str]:
    """How the guide may write a default."""
    if default is None:
        return {PLANNED, "none"}
    if isinstance(default, bool):
        return {f"`{str(default).lower()}`"}
    if isinstance(default, int | float):
        return {f"`{default}`"}
    if default == ():
        return {"`[]`"}
    if isinstance(default, Choice):
        pairs = (
            f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
            for key, value in default.table().items()
        )
        return {f"`{{ {', '.join(pairs)} }}`"}
    return {f'`"{default}"`'}


def test_every_recipe_key_is_documented_with_its_default():
    rows = dict(
        re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", GUIDE.split("## Recipes")[1].split("\n## ")[0], re.MULTILINE)
    )
    keys = dict(recipe_keys())
    assert set(rows) == set(keys)
    assert len(keys) >= 20
    assert {key: cell for key, cell in rows.items() if cell not in spelled(keys[key])} == {}


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "docs" / "guide.md"], ids=lambda path: path.name)
def test_recipes_in_the_documents_are_recipes(document):
    found = blocks(document.read_text(encoding="utf-8"), "toml")
    assert found
    for block in found:
        recipe = Recipe.validated(tomllib.loads(block), where=document.name)
        assert Recipe.validated(tomllib.loads(recipe.toml()), where="again") == recipe


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_the_documents_imports_what_exists(document):
    for block in blocks(document.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("thalweg."):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "thalweg":
                assert hasattr(importlib.import_module("thalweg"), node.attr), node.attr


def test_every_hook_is_documented():
    source = (ROOT / "src" / "thalweg" / "training" / "trainer.py").read_text(encoding="utf-8")
    [hooks] = [
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HOOKS"
    ]
    table = ARCHITECTURE.split("## Hooks")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(hooks)


def test_every_field_of_a_card_is_documented():
    section = ARCHITECTURE.split("## Cards")[1].split("\n## ")[0]
    names = {field.name for kind in (catalog.Card, catalog.Option) for field in fields(kind)}
    assert {name for name in names if f"`{name}`" not in section} == set()


def test_every_event_is_documented():
    section = GUIDE.split("## Metrics")[1].split("\n## ")[0]
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src" / "thalweg").rglob("*.py")]
    events = {name for source in sources for name in re.findall(r'"event": "(\w+)"', source)}
    # These two are passed on as an argument.
    events |= {"step", "skip"}
    assert set(re.findall(r"^\| `(\w+)` \| \w", section, flags=re.MULTILINE)) >= events
    assert len(events) >= 8


def test_every_key_of_a_plan_is_documented(small):
    from thalweg.sessions.train import make_plan

    plan, _ = make_plan(small(), quiet=True)
    section = ARCHITECTURE.split("## Plan")[1].split("\n## ")[0]
    keys = [*plan, *plan["chosen"], *plan["candidates"][0], *plan["data"]]
    assert {key for key in keys if f"`{key}`" not in section} == set()


def test_every_dependency_is_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    rows = re.findall(r"^\| .*$", (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    names = {re.split(r"[\[<>=!~ ]", name)[0] for name in wanted}
    assert len(names) > 20
    assert {name for name in names if not any(f"`{name}`" in row for row in rows)} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document):
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for block in blocks(document.read_text(encoding="utf-8"), "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            assert words[:1] != ["make"] or words[1] in rules, line
