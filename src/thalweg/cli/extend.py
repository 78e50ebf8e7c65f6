"""`thalweg extend`: a run goes on under a new budget."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "extend"
EXAMPLES = (
    'Examples:  thalweg extend runs/a --budget "+30min"  |  '
    'thalweg extend runs/a --budget "+2000 steps" --schedule wsd:warmup=0,decay=0.3 --from stable  |  '
    "thalweg extend runs/a --budget +1h --corpus new/ --replay 0.25"
)


def run(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="The run to go on from; it is only read.")],
    budget: Annotated[str, typer.Option(help="What is spent on top, as +30min or '+2000 steps'.", show_default=False)],
    schedule: Annotated[
        str | None, typer.Option(help="Of the continuation, as an arm spells it; wsd_s when left out.")
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="A new corpus; the old one is replayed.")] = None,
    replay: Annotated[str, typer.Option(help="Share of every batch from the old corpus, with a new one.")] = "5%",
    start: Annotated[
        str, typer.Option("--from", help="last: the newest checkpoint. stable: the end of the trunk.")
    ] = "last",
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder of the new run; runs/<date>-<time>.")] = None,
) -> None:
    """Continue any run, finished or not, under a new budget; the old run is never modified."""
    from thalweg.catalog import suggest
    from thalweg.cli.options import share
    from thalweg.cli.train import finish, show_start
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
        announce=show_start,
    )
    finish(found)
