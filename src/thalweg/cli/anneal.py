"""`thalweg anneal`: decayed models at several budgets off one stable run."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "anneal"
EXAMPLES = (
    "Examples:  thalweg anneal runs/a --at 0.5,0.75,1.0  |  thalweg anneal runs/a --at 1.0 --decay 0.4 --out runs/ends"
)


def run(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="The run with the trunk; it is only read.")],
    at: Annotated[str, typer.Option(help="Shares of its budget, as 0.5,0.75,1.0.", show_default=False)],
    decay: Annotated[str, typer.Option(help="Share of each branch's budget that is spent decaying.")] = "20%",
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder of the branches; RUN-anneal.")] = None,
) -> None:
    """Branch decayed models at several budgets off one stable run, with one report of all branches."""
    from thalweg.cli.options import share
    from thalweg.errors import BudgetError
    from thalweg.reports.branches import write_branches
    from thalweg.sessions.extend import anneal

    try:
        shares = [float(part) for part in at.split(",")]
    except ValueError:
        raise BudgetError(f"cannot read {at!r}", where="--at", fix="Write shares, as 0.5,0.75,1.0.") from None
    results = anneal(folder, shares, decay=share(decay, "--decay"), out=out)
    for part, result in zip(shares, results, strict=True):
        if result.signal is not None:
            print(f"Stopped in the branch at {part:g}. Continue it with:\n  thalweg train --resume {result.folder}")
            raise typer.Exit(128 + result.signal)
        print(f"at {part:<5g} {result.bits_per_byte:.4f} bits per byte  {result.folder}")
    report = write_branches([result.folder for result in results], results[0].folder.parent)
    print(f"\nReport  {report}")
