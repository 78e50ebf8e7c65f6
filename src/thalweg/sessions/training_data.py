"""The tokens of a recipe: its store, and the sampler that the trainer reads from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thalweg.data import TokenStore, WindowSampler, prepare
from thalweg.data.shifted import Shifted
from thalweg.recipe import Recipe
from thalweg.training.parallel import Parallel

DEFAULT_TOKENIZER = "bpe:4096"


def tokenizer_of(recipe: Recipe) -> str:
    """The tokenizer that a recipe means: its own, that of its model folder, or the default."""
    if recipe.data.tokenizer != "auto":
        return recipe.data.tokenizer
    folder = Path(recipe.model)
    return str(folder) if (folder / "tokenizer.json").is_file() else DEFAULT_TOKENIZER


def open_store(recipe: Recipe, parallel: Parallel, progress: bool) -> TokenStore:
    """The token store of a recipe's corpus; rank 0 builds it, the others then open it."""

    def build() -> TokenStore:
        data = recipe.data
        return prepare(
            data.corpus, tokenizer=tokenizer_of(recipe), field=data.field, held_out=data.held_out, progress=progress
        )

    store = build() if parallel.main else None
    parallel.barrier()
    return store or build()


def sampler_of(recipe: Recipe, chosen: dict[str, Any], store: TokenStore, parallel: Parallel) -> Any:
    """What gives this rank its batches: the corpus from its beginning, or from where the run before has left off.

    A continuation on a new corpus gets windows of the old one mixed in.
    """
    start = recipe.start
    shape = (chosen["context"], chosen["batch_size"], recipe.seed)
    if start is not None and start.corpus is not None:
        from thalweg.data.replay import ReplaySampler

        data = recipe.data
        old = prepare(start.corpus, tokenizer=tokenizer_of(recipe), field=data.field, held_out=data.held_out)
        return ReplaySampler(store.train, old.train, *shape, start.replay, parallel.rank, parallel.world_size)
    sampler = WindowSampler(store.train, *shape, parallel.rank, parallel.world_size)
    return Shifted(sampler, start.skip) if start is not None and start.skip else sampler
