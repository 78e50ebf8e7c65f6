"""`thalweg compare`: arms side by side, with a verdict."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "compare"
EXAMPLES = (
    "Examples:  thalweg compare adamw muon  |  "
    'thalweg compare adamw+cosine adamw+wsd:decay=0.3 --budget "300 steps" --seeds 5  |  '
    "thalweg compare adamw muon --tune 6  |  "
    "thalweg compare adamw muon --workload model=1M,corpus=a/ --workload model=4M,corpus=b/"
)


def run(
    arms: Annotated[list[str], typer.Argument(help="Two arms or more; the first is the baseline.", show_default=False)],
    budget: Annotated[str, typer.Option(help="Of every run: steps, tokens, flops, epochs or time.")] = "600 steps",
    corpus: Annotated[str, typer.Option(help="Corpus of all runs.")] = "stdlib",
    model: Annotated[str, typer.Option(help="Size, 'auto', or a Hugging Face model folder.")] = "1M",
    seeds: Annotated[int, typer.Option(help="Runs an arm.")] = 3,
    tune: Annotated[int, typer.Option(help="Trials an arm before that; 0 takes the defaults.")] = 0,
    sampler: Annotated[str, typer.Option(help="How trials are drawn: qmc or tpe.")] = "qmc",
    margin: Annotated[str, typer.Option(help="Differences within it are ties, of the baseline's value.")] = "0.2%",
    workload: Annotated[
        list[str] | None, typer.Option(help="model=4M,corpus=b,budget=...; may be repeated, then arms get scores.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any recipe key for all runs, as training.clip=0.5; repeatable.")
    ] = None,
    on: Annotated[str, typer.Option(help="Where: local or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster, as auto or ray://host:10001.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time; measured when left out.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the result; comparisons/<date>-<time>.")] = None,
    runs: Annotated[str, typer.Option(help="Folder where finished runs are kept and found again.")] = "runs/compared",
) -> None:
    """Compare arms fairly: same seeds, same data, same budget, and equal tuning."""
    from rich.console import Console

    from thalweg.arena.compare import compare
    from thalweg.cli.options import pairs, share

    try:
        found = compare(
            arms,
            budget=budget,
            corpus=corpus,
            model=model,
            seeds=seeds,
            tune=tune,
            sampler=sampler,
            margin=share(margin, "--margin"),
            workloads=workload or (),
            settings=pairs(settings or []),
            on=on,
            address=address,
            jobs=jobs,
            out=out,
            runs=runs,
        )
    except KeyboardInterrupt:
        print("\nStopped. Finished runs are kept, begun ones saved: the same command goes on from here.")
        raise
    console = Console(highlight=False)
    console.print(found)
    print(f"\nReport   {found.report}\nNumbers  {found.folder / 'results.json'}\nTable    {found.folder / 'table.md'}")
