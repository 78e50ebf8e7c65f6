"""`thalweg eval`: how good is a model on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "eval"
EXAMPLES = (
    "Examples:  thalweg eval runs/x  |  thalweg eval runs/x other_corpus/  |  thalweg eval model_folder/ notes.md"
)


def run(
    model: Annotated[Path, typer.Argument(help="A run folder, or a Hugging Face model folder.")],
    corpus: Annotated[
        str | None, typer.Argument(help="Text to evaluate on, all of it. Default: the run's held-out documents.")
    ] = None,
    field: Annotated[str, typer.Option(help="Field of the text in .jsonl and .parquet.")] = "text",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Loss, bits per byte and perplexity, with a bootstrap interval over documents."""
    import json as writer
    from dataclasses import asdict

    from thalweg.sessions.evaluate import evaluate_folder

    found = evaluate_folder(model, corpus, field)
    if json:
        print(writer.dumps(asdict(found)))
        return
    print(f"bits per byte  {found.bits_per_byte:.4f}  (95% interval {found.low:.4f} to {found.high:.4f})")
    print(f"loss           {found.loss:.4f} nats a token")
    ends = f"{found.perplexity_low:.2f} to {found.perplexity_high:.2f}"
    print(f"perplexity     {found.perplexity:.2f} a token  (95% interval {ends})")
    print(f"on             {found.tokens:,} tokens of {found.documents:,} documents")
