"""`thalweg methods`: what is in the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from thalweg.catalog import Card

NAME = "methods"
EXAMPLES = "Examples:  thalweg methods  |  thalweg methods wsd  |  thalweg methods --family schedules"


def run(
    name: Annotated[str | None, typer.Argument(help="Show one method in full.")] = None,
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
) -> None:
    """List the methods, or show one with its options."""
    from rich.console import Console
    from rich.table import Table

    from thalweg import catalog
    from thalweg.errors import RecipeError

    console = Console(highlight=False)
    if name is not None:
        _show(catalog.lookup(name, where="command line"), console)
        return
    cards = catalog.load().values()
    families = sorted({card.family for card in cards})
    if family is not None and family not in families:
        fix = catalog.suggest(family, families) or f"Families: {', '.join(families)}."
        raise RecipeError(f"there is no family {family!r}", where="--family", fix=fix)
    table = Table(box=None, pad_edge=False)
    for column in ("method", "family", "year", "idea"):
        table.add_column(column)
    for card in cards:
        if family in (None, card.family):
            table.add_row(f"[bold]{card.name}[/bold]", card.family, str(card.year), card.idea)
    console.print(table)


def _show(card: Card, console: Console) -> None:
    source = f"{card.title} ({card.year})" + (f", arXiv:{card.arxiv}" if card.arxiv else "")
    console.print(f"[bold]{card.name}[/bold]  ({card.family}, slot {card.slot})\n{card.idea}")
    console.print(f"Source: {source}\nThe paper says: {card.paper_claim}\nCost: {card.cost}", markup=False)
    for key, option in card.options.items():
        console.print(f"  {key} = {option.default!r}: {option.help} ({option.allowed()})", markup=False)
