"""`thalweg wind-tunnel`: small runs that tell how large ones should be planned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from thalweg.laws.corpus_laws import Laws

NAME = "wind-tunnel"
EXAMPLES = (
    "Examples:  thalweg wind-tunnel my_texts/ --budget 20min  |  "
    "thalweg plan my_texts/ --budget 10h  (uses what was measured)  |  "
    "thalweg wind-tunnel my_texts/ --budget 1h --arm adamw+cosine --sizes 1M,2M,5M,10M"
)


def run(
    corpus: Annotated[str, typer.Argument(help="What the small runs train on, as for train.")] = "stdlib",
    budget: Annotated[str, typer.Option("--budget", "-b", help='Of the whole: "20min", or "1e15 flops".')] = "20min",
    arm: Annotated[str, typer.Option("--arm", "-a", help="What they train with; the default arm when left out.")] = "",
    tokenizer: Annotated[str | None, typer.Option(help="As for train.")] = None,
    sizes: Annotated[str | None, typer.Option(help="To choose from, as 0.5M,1M,2M; three at least.")] = None,
    least_steps: Annotated[int, typer.Option(help="Of a run; shorter ones lag behind the law.")] = 100,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Any recipe key for all; repeatable.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time; measured when left out.")] = None,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of laws.json and laws.svg.")] = "wind-tunnel",
    runs: Annotated[str, typer.Option(help="Folder where finished runs are kept and found again.")] = (
        "runs/wind-tunnel"
    ),
) -> None:
    """Measure a corpus with small runs: the law of its loss and the best rates, which plan and train then use."""
    from thalweg.arena.wind_tunnel import wind_tunnel
    from thalweg.cli import STARTED
    from thalweg.cli.options import pairs

    said = pairs(settings or []) | ({"data.tokenizer": tokenizer} if tokenizer else {})
    try:
        laws = wind_tunnel(
            corpus,
            budget,
            arm=arm,
            settings=said,
            sizes=[size.strip() for size in sizes.split(",")] if sizes else None,
            least_steps=least_steps,
            jobs=jobs,
            out=out,
            runs=runs,
            started=STARTED,
        )
    except KeyboardInterrupt:
        print("\nStopped. Finished runs are kept, begun ones saved: the same command goes on from here.")
        raise
    show(laws)
    print(f"\nLaws     {out}/laws.json\nFigure   {out}/laws.svg")
    print(f"Use      thalweg plan {corpus} --budget 1h  finds them; elsewhere: --laws {out}/laws.json")


def show(laws: Laws) -> None:
    """The points beside the law, the law and the rule."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in ("parameters", "tokens", "bits per byte", "fitted"):
        table.add_column(name, justify="right")
    for parameters, tokens, bits in laws.points:
        fitted = float(laws.law.predict(parameters, tokens))
        table.add_row(f"{parameters / 1e6:.2f}M", f"{tokens / 1e6:.2f}M", f"{bits:.4f}", f"{fitted:.4f}")
    console.print(table)
    law = laws.law
    print(
        f"\nLaw      L = {law.E:.4g} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f} bits per byte; "
        f"a run misses it by {law.sigma:.2%}\n         {laws.source}"
    )
    for name, rule in laws.rates.items():
        print(f"Rate     {rule.peak_lr:g} ({rule.at_width} / width)^{rule.width_exponent:g} for {name}")
        print(f"         {rule.source}")
