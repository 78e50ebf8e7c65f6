"""`thalweg claim`: put what cards claim to the test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from thalweg.arena.ledger import Outcome
    from thalweg.catalog import Card

NAME = "claim"
EXAMPLES = "Examples:  thalweg claim wsd muon  |  thalweg claim --family schedules  |  thalweg claim --all --stale"


def run(
    names: Annotated[list[str] | None, typer.Argument(help="Methods. `thalweg methods` lists them.")] = None,
    family: Annotated[str | None, typer.Option(help="All methods of this family.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All methods.")] = False,
    stale: Annotated[
        bool, typer.Option("--stale", help="Only where card or code have changed since; alone: of all methods.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the records.")] = Path("results"),
) -> None:
    """Run the claims of methods and write what comes out; a claim that fails is kept like one that holds."""
    from thalweg.arena import ledger

    chosen = _chosen(names or [], family, everything, stale)
    if stale:
        chosen = [name for name in chosen if ledger.is_stale(name, out)]
        if not chosen:
            print("Nothing is stale: every record is of the card and the code as they are.")
            return
    outcomes: list[Outcome] = []
    try:
        ledger.run_claims(chosen, out, begin=_Announcer(len(chosen)), done=outcomes.append, quiet=False)
    finally:
        # After Ctrl-C, too: what ended before it is written.
        _show(outcomes)
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(2)


def _chosen(names: list[str], family: str | None, everything: bool, stale: bool) -> list[str]:
    """The methods that were asked for, in the catalogue's order where they were not named one by one."""
    from thalweg import catalog
    from thalweg.errors import ArenaError

    ways = [bool(names), family is not None, everything]
    if sum(ways) > 1 or not (any(ways) or stale):
        raise ArenaError(
            "say which claims in one way" if any(ways) else "no claim is named",
            where="command line",
            fix="Name methods, or say --family FAMILY, --all or --stale.",
        )
    cards = catalog.load()
    if names:
        return [catalog.lookup(name, where="command line").name for name in names]
    families = sorted({card.family for card in cards.values()})
    if family is not None and family not in families:
        fix = catalog.suggest(family, families) or f"Families: {', '.join(families)}."
        raise ArenaError(f"there is no family {family!r}", where="--family", fix=fix)
    return [name for name, card in cards.items() if family in (None, card.family)]


class _Announcer:
    """Says before each claim what is about to be measured, on standard error."""

    def __init__(self, total: int) -> None:
        self.total, self.begun = total, 0

    def __call__(self, card: Card) -> None:
        from rich.console import Console

        self.begun += 1
        claim = card.claim
        how = f"{', '.join(claim['arms'])}; {claim['budget']}" if "arms" in claim else claim["function"].split(":")[0]
        Console(stderr=True, highlight=False).print(
            f"Claim {self.begun} of {self.total}: {card.name} ({how})", markup=False
        )


def _show(outcomes: list[Outcome]) -> None:
    """The verdicts and where they are on standard output, what could not be tested on standard error."""
    import sys

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("method", "verdict", "measured", "written to"):
        table.add_column(column, no_wrap=column != "measured")
    for outcome in outcomes:
        if outcome.entry is not None:
            row = (outcome.name, outcome.entry["verdict"], outcome.entry["sentence"], str(outcome.path))
            table.add_row(*map(_text, row))
    if table.row_count:
        Console(highlight=False).print(table)
    for outcome in outcomes:
        if outcome.error is not None:
            where = f" [{outcome.error.where}]" if outcome.error.where else ""
            print(f"error: {outcome.name}: {outcome.error.what}{where}", file=sys.stderr)
            if outcome.error.fix:
                print(f"  try: {outcome.error.fix}", file=sys.stderr)


def _text(words: str) -> str:
    """Brackets in arms and errors are no markup."""
    from rich.markup import escape

    return escape(words)
