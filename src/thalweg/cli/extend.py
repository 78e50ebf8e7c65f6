"""`thalweg extend`: a run goes on under a new budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

NAME = "extend"
EXAMPLES = (
    'Examples:  thalweg extend runs/a --budget "+30min"  |  '
    'thalweg extend runs/a --budget "4000 steps" --schedule wsd:warmup=0,decay=0.3  |  '
    "thalweg extend runs/a --budget +1h --corpus new/ --replay 0.25"
)


def run(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="The run to go on from; it is only read.")],
    budget: Annotated[
        str,
        typer.Option(help="On top, as +30min; without a plus, for the whole run, as '4000 steps'.", show_default=False),
    ],
    schedule: Annotated[
        str | None, typer.Option(help="Of the continuation, as an arm spells it; wsd_s when left out.")
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="A new corpus; the old one is replayed.")] = None,
    replay: Annotated[str, typer.Option(help="Share of every batch from the old corpus, with a new one.")] = "5%",
    start: Annotated[
        str,
        typer.Option("--from", help="The last checkpoint, or the stable one at the end of the trunk if there is one."),
    ] = "auto",
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder of the new run; runs/<date>-<time>.")] = None,
) -> None:
    """Continue any run, finished or not, under a new budget; the old run is never modified."""
    from thalweg.catalog import suggest
    from thalweg.cli.options import share
    from thalweg.cli.train import finish
    from thalweg.errors import RecipeError
    from thalweg.sessions.extend import FROM, extend

    if start not in FROM:
        fix = suggest(start, FROM) or f"Choose from {', '.join(FROM)}."
        raise RecipeError(f"a run cannot go on from {start!r}", where="--from", fix=fix)
    found = extend(
        folder,
        budget,
        schedule=schedule,
        corpus=corpus,
        replay=share(replay, "--replay"),
        start=start,
        out=out,
        announce=_show_start,
    )
    finish(found)


def _show_start(plan: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    from thalweg.cli.train import show_start
    from thalweg.runs import Run

    recipe = Run.open(folder).recipe
    assert recipe.start is not None
    said = f"Going on from step {recipe.start.step} of {recipe.start.run} for {recipe.budget}, {recipe.schedule}"
    Console(stderr=True).print(said, highlight=False, markup=False)
    show_start(plan, folder)
