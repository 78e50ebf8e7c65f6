"""`thalweg train`: spend a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from thalweg.sessions.train import Result

NAME = "train"
EXAMPLES = """Examples:  thalweg train --budget 2min  |  thalweg train corpus/ --budget 1h  |
thalweg train recipe.toml --seed 1  |  thalweg train --arm "muon+wsd:decay=0.2" --budget "300 steps"  |
thalweg train --resume runs/x  |  torchrun --nproc-per-node 2 -m thalweg train corpus/"""


def run(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A corpus (file, folder, hf:owner/name) or a recipe (*.toml). Default: the standard library."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", "-b", help='"90s", "1h", "300 steps", "50M tokens", "2 epochs", "1e17 flops".'),
    ] = None,
    arm: Annotated[
        str | None,
        typer.Option("--arm", "-a", help='Choices, as in "muon+wsd:decay=0.2". `thalweg methods` lists them.'),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A size such as 5M, or a Hugging Face model folder.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help='"bpe:4096", or a Hugging Face tokenizer folder.')] = None,
    laws: Annotated[
        str | None, typer.Option(help='"auto", "built-in", or what `thalweg wind-tunnel` wrote for a corpus.')
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, data order and noise.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run folder. Default: runs/<date>-<time>.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any key of the recipe: --set training.clip=0.5 (repeatable).")
    ] = None,
    shard: Annotated[bool | None, typer.Option("--shard", help="Under torchrun: FSDP2 instead of DDP.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory that training may use, such as 8GB.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run folder; says everything itself.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan only, as `thalweg plan` does.")] = False,
) -> None:
    """Train a model within a budget; everything not said is planned."""
    from thalweg.cli import STARTED
    from thalweg.cli.options import memory_bytes, recipe_from
    from thalweg.cli.tables import show_plan
    from thalweg.errors import RecipeError

    said = {
        "budget": budget,
        "model": model,
        "data.tokenizer": tokenizer,
        "laws": laws,
        "seed": seed,
        "training.shard": shard,
    }
    if resume is not None:
        given = [
            name for name, value in {**said, "source": source, "arm": arm, "out": out}.items() if value is not None
        ]
        if given or settings:
            raise RecipeError(
                f"--resume takes everything from the run; {', '.join(given) or '--set'} cannot change it",
                where="command line",
                fix=f"Run `thalweg train --resume {resume}` alone.",
            )
        from thalweg.sessions.train import resume as continue_run

        finish(continue_run(resume, announce=show_start))
        return
    recipe = recipe_from(source, arm, said, settings or [])
    if dry_run:
        from thalweg.cli.plan import show

        show(recipe, memory, None)
        return
    from thalweg.sessions.train import train

    def announce(plan: dict[str, Any], folder: Path) -> None:
        show_plan(plan)
        show_start(plan, folder)

    finish(train(recipe, out, started=STARTED, memory=memory_bytes(memory), announce=announce))


def show_start(plan: dict[str, Any], folder: Path) -> None:
    """Say where the run is kept before it begins."""
    from rich.console import Console

    Console(stderr=True).print(f"Training in [bold]{folder}[/bold]", highlight=False)


def finish(result: Result) -> None:
    """Say how it went and where everything is; a run that a signal ended exits with 128 + its number."""
    import os

    if int(os.environ.get("RANK", 0)) == 0:
        if result.signal is not None:
            print(f"\nStopped at step {result.step}; nothing is lost. Continue with:")
            print(f"  thalweg train --resume {result.folder}")
        else:
            interval = f"95% interval {result.low:.4f} to {result.high:.4f}"
            print(f"\nHeld-out bits per byte  {result.bits_per_byte:.4f}  ({interval})")
            print(f"Spent                   {result.step} steps, {result.tokens:,} tokens, {result.seconds:.1f} s")
            print(f"Report                  {result.report}")
            print(f"Checkpoint              {result.checkpoint}")
            print(f'Try it                  thalweg generate {result.folder} "def "')
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)
