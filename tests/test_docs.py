"""The documents are true where a machine can tell: commands parse, links lead somewhere, nothing is left out."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from thalweg import catalog
from thalweg.arena import ledger, race
from thalweg.arena.compare import PLACES, Terms, compare
from thalweg.arena.comparison import Comparison
from thalweg.arena.race import PASSED_ON
from thalweg.arena.workload import Workload
from thalweg.cli.app import app
from thalweg.cli.options import pairs, recipe_from, share
from thalweg.recipe import Choice, Recipe

ROOT = Path(__file__).parents[1]
# Those in docs/methods are generated: they are looked at where they are.
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PLANNED = "*planned*"


def place(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def section(text: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


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
    if verb == "compare":
        check_comparison(said)
    if verb == "claim":
        assert set(said["names"] or ()) <= set(catalog.load())
        assert said["family"] in {None, *(card.family for card in catalog.load().values())}


def check_comparison(said: dict[str, Any]) -> None:
    """What `thalweg compare` looks at before it begins."""
    terms = Terms(said["seeds"], said["tune"], said["sampler"], share(said["margin"], "--margin"))
    terms.check(said["arms"])
    base = Workload(said["model"], said["corpus"], said["budget"], pairs(said["settings"] or []))
    for workload in [Workload.parse(text, base) for text in said["workload"] or []] or [base]:
        assert all(workload.recipe(arm).toml() for arm in said["arms"])
    assert said["on"] in PLACES


def test_there_are_commands():
    assert len(list(commands())) >= 40
    assert {words[0] for words in commands()} == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def anchors(text: str) -> set[str]:
    """The names that a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=place)
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
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", section(GUIDE, "Recipes"), re.MULTILINE))
    keys = dict(recipe_keys())
    assert set(rows) == set(keys)
    assert len(keys) >= 20
    assert {key: cell for key, cell in rows.items() if cell not in spelled(keys[key])} == {}


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "docs" / "guide.md"], ids=place)
def test_recipes_in_the_documents_are_recipes(document):
    found = blocks(document.read_text(encoding="utf-8"), "toml")
    assert found
    for block in found:
        recipe = Recipe.validated(tomllib.loads(block), where=document.name)
        assert Recipe.validated(tomllib.loads(recipe.toml()), where="again") == recipe


@pytest.mark.parametrize("document", DOCUMENTS, ids=place)
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
    assert re.findall(r"^\| `(\w+)` \|", section(ARCHITECTURE, "Hooks"), flags=re.MULTILINE) == list(hooks)


def test_every_field_of_a_card_is_documented():
    names = {field.name for kind in (catalog.Card, catalog.Option) for field in fields(kind)}
    claimed = {key for card in catalog.load().values() for key in card.claim}
    searched = {key for card in catalog.load().values() for one in card.options.values() for key in one.search or ()}
    text = section(ARCHITECTURE, "Cards")
    assert {name for name in {*names, *claimed, *searched, *PASSED_ON} if not told(name, text)} == set()


def test_every_event_is_documented():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src" / "thalweg").rglob("*.py")]
    events = {name for source in sources for name in re.findall(r'"event": "(\w+)"', source)}
    # These two are passed on as an argument.
    events |= {"step", "skip"}
    assert set(re.findall(r"^\| `(\w+)` \| \w", section(GUIDE, "Metrics"), flags=re.MULTILINE)) >= events
    assert len(events) >= 8


def test_every_key_of_a_plan_is_documented(small):
    from thalweg.sessions.train import make_plan

    plan, _ = make_plan(small(), quiet=True)
    keys = [*plan, *plan["chosen"], *plan["candidates"][0], *plan["data"]]
    assert {key for key in keys if not told(key, section(ARCHITECTURE, "Plan"))} == set()


@pytest.fixture(scope="module")
def compared(corpus, tmp_path_factory) -> Comparison:
    """As short a comparison as there can be that fills every key: two workloads, tuned."""
    folder = tmp_path_factory.mktemp("compared")
    settings = {"data.tokenizer": "bpe:512", "data.context": 32, "data.held_out": 0.1, "training.batch_size": 8}
    return compare(
        ["adamw+linear", "adamw+wsd"],
        corpus=str(corpus),
        seeds=1,
        tune=1,
        workloads=["model=0.2M,budget=3 steps", "model=0.2M,budget=2 steps"],
        settings=settings,
        jobs=1,
        out=folder / "out",
        runs=folder / "runs",
        quiet=True,
    )


def keys_of(value: Any, but: tuple[str, ...] = ()) -> Iterator[str]:
    """Every key in nested plain data; what stands under those of `but` has names of its own, not ours."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from () if key in but else keys_of(inner, but)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner, but)


# What stands below has the names of packages, of options, of callbacks' numbers, of arms.
FOREIGN = ("versions", "machine", "space", "values", "metrics", "noise_of", "profile")


def told(name: str, text: str) -> bool:
    return f"`{name}`" in text


def test_every_key_of_a_comparison_is_documented(compared):
    results = json.loads((compared.folder / "results.json").read_text(encoding="utf-8"))
    text = section(GUIDE, "What results.json holds")
    found = {*results["profile"], *keys_of(results, FOREIGN)}
    limits = {key for card in results["workloads"][0]["arms"] for one in card["space"].values() for key in one}
    assert {key for key in found | limits if not told(key, text)} == set()
    assert len(found) > 60
    # And nothing is documented that is not there.
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, flags=re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} <= found


def test_every_key_of_a_record_is_documented(compared, tmp_path):
    card = catalog.lookup("wsd")
    raced = {"date": "", "hash": "", "source": ledger.hashes(card), **race.entry(card, compared.results)}
    checked = ledger.measure(catalog.lookup("cross_entropy"))
    record = json.loads(ledger.append(card, raced, tmp_path).read_text(encoding="utf-8"))
    raced["source"].pop("both")
    for arm in raced["arms"]:
        arm["seeds"] = list(arm["seeds"])
    text = section(GUIDE, "Claims") + section(GUIDE, "What results.json holds")
    found = {*record, *keys_of(raced, FOREIGN), *checked}
    assert {key for key in found if not told(key, text)} == set()
    assert len(found) > 50


def test_every_member_of_a_comparison_is_documented():
    members = {name for name in vars(Comparison) if not name.startswith("_")} | {"results", "folder"}
    text = section(GUIDE, "From Python")
    assert {name for name in members if not re.search(rf"`(?:Comparison\.)?{name}[`(]", text)} == set()


def test_every_option_of_compare_is_documented():
    command = typer.main.get_command(app).commands["compare"]  # type: ignore[attr-defined]
    options = [parameter for parameter in command.params if parameter.opts[0].startswith("--")]
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \|", section(GUIDE, "Comparing"), flags=re.MULTILINE)
    default = {name: cell for names, cell in rows for name in re.findall(r"`(--\w+)`", names)}
    assert set(default) == {option.opts[0] for option in options} - {"--help"}
    said = {option.opts[0]: str(option.default) for option in options if option.default not in (None, [])}
    assert {name for name, value in said.items() if f"`{value}`" not in default.get(name, "")} == set()


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=place)
def test_make_targets_exist(document):
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for block in blocks(document.read_text(encoding="utf-8"), "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            assert words[:1] != ["make"] or words[1] in rules, line
