"""`thalweg sensitivity`: how much an arm depends on its learning rate."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "sensitivity"
EXAMPLES = (
    "Examples:  thalweg sensitivity adamw  |  "
    'thalweg sensitivity muon+wsd --model 1M --budget "600 steps" --rates 1e-3,1e-2,1e-1'
)


def run(
    arm: Annotated[str, typer.Argument(help="What is trained at every rate.", show_default=False)],
    rates: Annotated[str | None, typer.Option(help="Peak rates; 3e-4 to 3e-1 when left out.")] = None,
    budget: Annotated[str, typer.Option(help="Of every run.")] = "300 steps",
    corpus: Annotated[str, typer.Option(help="Corpus of all runs.")] = "stdlib",
    model: Annotated[str, typer.Option(help="Size, 'auto', or a Hugging Face model folder.")] = "0.5M",
    seeds: Annotated[int, typer.Option(help="Runs a rate.")] = 1,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Any recipe key for all; repeatable.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time; measured when left out.")] = None,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the numbers and the plot.")] = "sensitivity",
    runs: Annotated[str, typer.Option(help="Folder where finished runs are kept and found again.")] = "runs/compared",
) -> None:
    """Train an arm at rates over three decades: the losses, and one number for how much the rate matters."""
    from thalweg.arena.sensitivity import sweep
    from thalweg.cli.options import pairs
    from thalweg.errors import RecipeError
    from thalweg.laws.sensitivity import RATES

    try:
        grid = [float(part) for part in rates.split(",")] if rates else list(RATES)
    except ValueError:
        raise RecipeError(f"cannot read the rates {rates!r}", where="--rates", fix="Write 1e-3,1e-2,1e-1.") from None
    told = sweep(
        arm,
        rates=grid,
        budget=budget,
        model=model,
        corpus=corpus,
        seeds=seeds,
        settings=pairs(settings or []),
        jobs=jobs,
        out=out,
        runs=runs,
    )
    print("peak rate   held-out loss, nats a token")
    for rate, loss in zip(told.rates, told.losses, strict=True):
        print(f"{rate:<10g}  {'diverged' if loss is None else f'{loss:.4f}'}")
    print(f"\nSensitivity {told.sensitivity:.4f} (untrained: {told.initial:.4f})\nIn {out}/")
