"""`thalweg mup-check`: whether activations move by the same amount at every width."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "mup-check"
EXAMPLES = "Examples:  thalweg mup-check  |  thalweg mup-check --widths 64,128,256 --optimizer muon --steps 8"


def run(
    widths: Annotated[str, typer.Option(help="Of the models; the smallest is the base.")] = "64,128,256,512",
    steps: Annotated[int, typer.Option(help="Of training, before activations are compared.")] = 4,
    optimizer: Annotated[str, typer.Option(help="As an arm spells it.")] = "adamw",
    rate: Annotated[float | None, typer.Option(help="At the base width; the optimizer's own when left out.")] = None,
    seeds: Annotated[int, typer.Option(help="Models a width, over which means are taken.")] = 2,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the numbers and the plot.")] = "mup-check",
) -> None:
    """Train models of several widths for a few steps, with muP and without, and compare how far activations move."""
    from thalweg.errors import RecipeError
    from thalweg.sessions.coordinate_check import coordinate_check

    try:
        wanted = [int(part) for part in widths.split(",")]
    except ValueError:
        raise RecipeError(f"cannot read the widths {widths!r}", where="--widths", fix="Write 64,128,256.") from None
    told = coordinate_check(
        wanted,
        steps=steps,
        optimizer=optimizer,
        rate=rate,
        seeds=seeds,
        out=out,
        tell=lambda line: typer.echo(line, err=True),
    )
    columns = "".join(f"{width:>10}" for width in told.widths)
    for name, title in (("standard", "One rate for all widths"), ("mup", "muP")):
        print(f"{title}: mean change after {told.steps} steps at peak rate {told.rate:g}\n{'width':<18}{columns}    as")
        for part, rows in told.changes[name].items():
            changes = "".join(f"{row[-1]:>10.3g}" for row in rows)
            print(f"{part:<18}{changes}    width^{told.growth[name][part]:.2f}")
        print()
    print(f"{told.verdict}\nIn {out}/")
