"""The verbs, gathered."""

from __future__ import annotations

from typing import Annotated

import typer

from thalweg.cli import (
    anneal,
    claim,
    claims,
    compare,
    compress,
    evaluate,
    extend,
    generate,
    methods,
    mup_check,
    plan,
    predict,
    report,
    schedule,
    sensitivity,
    train,
    wind_tunnel,
)

app = typer.Typer(
    name="thalweg",
    help="Train language models to the lowest loss that a budget allows.",
    epilog="Start with: thalweg train --budget 2min",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from thalweg import __version__

        print(f"thalweg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for module in (
    *(train, plan, wind_tunnel, extend, anneal, predict, compare, sensitivity, mup_check, claim, claims),
    *(compress, evaluate, generate, report, methods),
):
    app.command(module.NAME, epilog=module.EXAMPLES)(module.run)

app.add_typer(schedule.app, name=schedule.NAME, epilog=schedule.EXAMPLES)
