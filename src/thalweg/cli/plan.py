"""`thalweg plan`: what a budget would buy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from thalweg.recipe import Recipe

NAME = "plan"
EXAMPLES = "Examples:  thalweg plan --budget 1h  |  thalweg plan corpus/ --budget 1h --memory 8GB"


def run(
    source: Annotated[str | None, typer.Argument(help="A corpus or a recipe, as for train.")] = None,
    budget: Annotated[str | None, typer.Option("--budget", "-b", help="As for train.")] = None,
    arm: Annotated[str | None, typer.Option("--arm", "-a", help="As for train.")] = None,
    model: Annotated[str | None, typer.Option(help="As for train.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="As for train.")] = None,
    laws: Annotated[str | None, typer.Option(help="As for train.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="As for train.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory that training may use, such as 8GB.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the plan.")] = Path("plan.json"),
) -> None:
    """Show what a budget would buy: size, tokens, rate, expected loss, and why."""
    from thalweg.cli.options import recipe_from

    said = {"budget": budget, "model": model, "data.tokenizer": tokenizer, "laws": laws}
    show(recipe_from(source, arm, said, settings or []), memory, out)


def show(recipe: Recipe, memory: str | None, out: Path | None) -> None:
    """Plan a recipe, print the tables and write plan.json (unless `out` is None)."""
    import json

    from thalweg.cli.options import memory_bytes
    from thalweg.cli.tables import show_plan
    from thalweg.runs import write_text
    from thalweg.sessions.train import make_plan

    plan, _ = make_plan(recipe, memory=memory_bytes(memory))
    show_plan(plan)
    if out is not None:
        write_text(out, json.dumps(plan, indent=2) + "\n")
        print(f"Written to {out}")
