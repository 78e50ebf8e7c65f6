"""`thalweg compress`: make a trained model small, recover what was lost, and say what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

NAME = "compress"
EXAMPLES = (
    'Examples:  thalweg compress runs/x --with "gptq:bits=4,group=32" -o small/  |  '
    'thalweg compress runs/x --with "wanda:sparsity=0.5+gptq:bits=4+perp:budget=200 steps" -o small/  |  '
    "thalweg compress model_folder/ --calibration corpus/ --target 0.4x -o small/"
)


def run(
    model: Annotated[
        Path, typer.Argument(help="A run folder, or a Hugging Face causal language model folder.", show_default=False)
    ],
    steps: Annotated[
        str, typer.Option("--with", "-w", help="Steps from left to right, as wanda:sparsity=0.5+gptq:bits=4.")
    ] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the result; must not exist.")] = Path(
        "compressed"
    ),
    calibration: Annotated[
        str | None, typer.Option(help="Text to calibrate on. Default: the run's own, for a folder 'stdlib'.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Size to reach, as 0.4x or 120MB; auto: as sparse as costs nothing.")
    ] = None,
    windows: Annotated[int, typer.Option(help="Calibration windows.")] = 128,
    context: Annotated[
        int | None, typer.Option(help="Tokens in each. Default: what the model holds, at most 1024.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of windows.")] = 0,
    tokens: Annotated[int, typer.Option(help="Held-out tokens to evaluate on, at most.")] = 200_000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a trained model small: prune, quantize, recover; bytes and quality before and after."""
    import json as writer

    from thalweg.errors import RecipeError
    from thalweg.sessions.compress import compress

    if not steps.strip() and target is None:
        raise RecipeError("neither steps nor a size are given", where="--with", fix='Write --with "gptq:bits=4".')
    try:
        with _interruptible() as check, _progress(not json, check) as progress:
            told = compress(
                model,
                steps,
                out,
                calibration=calibration,
                target=target,
                windows=windows,
                context=context,
                seed=seed,
                tokens=tokens,
                progress=progress,
            )
    except KeyboardInterrupt:
        kept = out.with_name(f"{out.name}.partial")
        done = f"What is done is in {kept}/; the same command goes on from there." if kept.is_dir() else "Nothing done."
        typer.echo(f"\nInterrupted. {done}", err=True)
        raise typer.Exit(130) from None
    if json:
        print(writer.dumps(told))
    else:
        _show(told, out)


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Ctrl-C as ever, and a function that raises it again: a library may have swallowed it while it was imported."""
    import signal

    asked: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(shown: bool, check: Callable[[], None]) -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal; a line for each thing that is begun elsewhere. Every report calls `check`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    if not shown:
        yield lambda text, share: check()
        return
    if not console.is_terminal:
        last: list[str] = []

        def line(text: str, share: float) -> None:
            check()
            if last != [text]:
                last[:] = [text]
                console.print(text, markup=False)

        yield line
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def update(text: str, share: float) -> None:
            check()
            if bar.tasks[0].description != text:
                bar.reset(task, description=text, total=1.0)
            bar.update(task, completed=share)

        yield update


def _show(told: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from thalweg.reports.compression import notes_of_layers, rows

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for name, before, after in rows(told):
        table.add_row(name, before, after)
    console.print(table)
    for note in [*notes_of_layers(told), *told["stored"].get("notes", [])]:
        console.print(f"Note  {escape(note)}")
    console.print(f"\nModel   {escape(str(out))}/\nReport  {escape(str(out / 'report.html'))}")
