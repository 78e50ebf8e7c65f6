"""Evaluating a run or a model folder on its held-out documents or on any corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from thalweg.data import TokenSplit, TokenStore, part_of, prepare
from thalweg.errors import ModelError, RunError
from thalweg.models.evaluate import Evaluation, evaluate
from thalweg.models.folder import load
from thalweg.recipe import Recipe
from thalweg.runs import Run, read_json
from thalweg.sessions.training_data import tokenizer_of
from thalweg.training.checkpoints import CheckpointFolder

DEFAULT_CONTEXT = 1024
BATCH_TOKENS = 8192


def model_folder(folder: str | Path) -> Path:
    """The model folder that a path means: a run's newest sound checkpoint, or the folder itself."""
    path = Path(folder)
    if (path / "recipe.toml").is_file():
        checkpoints = CheckpointFolder(path / "checkpoints")
        return checkpoints.path(checkpoints.newest()[0])
    return path


class Together:
    """Several splits read as one: a corpus that is evaluated whole has no sides."""

    def __init__(self, splits: list[TokenSplit]) -> None:
        self.splits = splits
        self.starts = np.cumsum([0, *(split.token_count for split in splits)])
        self.token_count = int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1, across the seam where there is one."""
        parts = []
        for split, first in zip(self.splits, self.starts[:-1].tolist(), strict=True):
            low, high = max(start - first, 0), min(stop - first, split.token_count)
            if low < high:
                parts.append(split.read(low, high))
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        """As TokenSplit.documents()."""
        found = [split.documents() for split in self.splits]
        shifted = [offsets[:-1] + first for (offsets, _), first in zip(found, self.starts[:-1], strict=True)]
        offsets = np.concatenate([*shifted, [self.token_count]])
        return offsets, np.concatenate([sizes for _, sizes in found])


def evaluate_folder(folder: str | Path, corpus: str | None = None, field: str = "text") -> Evaluation:
    """Evaluate a run or a model folder.

    Args:
        folder: a run folder (its newest checkpoint) or a Hugging Face model folder.
        corpus: evaluated whole; when left out, the held-out documents of the corpus of the run, or of the run that a
            compressed folder was made from.
        field: of the text in .jsonl and .parquet.
    """
    path = Path(folder)
    source = model_folder(path)
    model, tokenizer = load(source)
    if tokenizer is None:
        raise ModelError("the model folder has no tokenizer", where=str(source))
    split: Any
    if corpus is not None:
        store = prepare(corpus, tokenizer=str(source), field=field)
        split = Together([store.train, store.held_out])
    else:
        recipe = Run.open(path if source != path else _made_from(path)).recipe
        split = part_of(own_store(recipe).held_out, recipe.data.evaluate_on)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    context = min(getattr(model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    model.to(device)  # type: ignore[arg-type]
    return evaluate(model, split, context=context, batch_size=max(BATCH_TOKENS // context, 1))


def _made_from(folder: Path) -> Path:
    """The run that a folder was compressed from."""
    said = folder / "compression.json"
    told = read_json(said) if said.is_file() else None
    named = told.get("run") if isinstance(told, dict) else None
    run = Path(str(named))
    if named is None or not (run / "recipe.toml").is_file():
        raise RunError(
            "a model folder has no held-out documents of its own"
            + (f", and the run that it was made from, {named}, is not there" if named else ""),
            where=str(folder),
            fix=f"Name a corpus: `thalweg eval {folder} corpus/`.",
        )
    return run


def own_store(recipe: Recipe) -> TokenStore:
    """The token store that a recipe trains and is evaluated on."""
    data = recipe.data
    return prepare(data.corpus, tokenizer=tokenizer_of(recipe), field=data.field, held_out=data.held_out)
