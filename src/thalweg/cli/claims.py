"""`thalweg claims`: the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "claims"
EXAMPLES = "Examples:  thalweg claims  |  thalweg claims --markdown  |  thalweg claims --markdown --docs pages"


def run(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write the pages of the methods again, one a family.")
    ] = False,
    docs: Annotated[Path | None, typer.Option(help="The folder of the pages. Default: docs/methods.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the records.")] = Path("results"),
) -> None:
    """Show what was claimed, what was measured, and the verdict."""
    from thalweg.arena import ledger

    if markdown:
        from thalweg import catalog
        from thalweg.arena.pages import DOCS, write

        for path in write(catalog.load(), ledger.read(out), docs or DOCS, ledger.comparisons(out)):
            print(path)
        return
    if docs is not None:
        from thalweg.errors import ArenaError

        raise ArenaError("--docs is for --markdown", where="command line", fix="Say --markdown too.")
    _show(out)


def _show(out: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from thalweg import catalog
    from thalweg.arena import ledger

    records = ledger.read(out)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0), expand=True)
    for column, share in (("method", None), ("the paper's claim", 4), ("measured", 4), ("verdict", 2)):
        table.add_column(column, ratio=share)
    table.add_column("cost", justify="right", no_wrap=True)
    for name, card in catalog.load().items():
        if name not in records:
            table.add_row(name, escape(card.paper_claim), "", "not measured", "")
            continue
        newest = records[name]["history"][-1]
        verdict = newest["verdict"] + (", stale" if ledger.is_stale(name, out) else "")
        row = (name, records[name]["paper_claim"], newest["sentence"], verdict, f"{newest['seconds']:,.0f} s")
        table.add_row(*map(escape, row))
    Console(highlight=False).print(table)
