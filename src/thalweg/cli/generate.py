"""`thalweg generate`: let a model write."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "generate"
EXAMPLES = (
    'Examples:  thalweg generate runs/x "def "  |  thalweg generate runs/x "class " --tokens 200 --temperature 0.7'
)


def run(
    model: Annotated[Path, typer.Argument(help="A run folder, or a Hugging Face model folder.")],
    prompt: Annotated[str, typer.Argument(help="What the text begins with.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="New tokens at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among the k likeliest tokens; 0 for all.")] = 50,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
) -> None:
    """Sample text from a run or a model folder."""
    from thalweg.errors import ModelError
    from thalweg.models.folder import load
    from thalweg.models.generate import generate
    from thalweg.sessions.evaluate import model_folder

    found, tokenizer = load(model_folder(model))
    if tokenizer is None:
        raise ModelError("the model folder has no tokenizer", where=str(model))
    text = generate(found, tokenizer, prompt, tokens, temperature, top_k or None, seed)
    print(prompt + text)
