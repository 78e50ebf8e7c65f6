"""From a corpus to batches: read documents, tokenize them once, keep them in a store, draw windows from it.

The path of a byte: `corpora` lists files and `readers` turns them into documents; `splitting` sends each document
to one side by its content; `tokenization` trains or loads a tokenizer and `encoder` runs it on all cores; `writer`
puts tokens on disk and `store` reads them back memory-mapped; `building.prepare` does all of this, or finds that it
was done before; `sampler.WindowSampler` makes batches that are a pure function of (seed, step).

Names are resolved when first used, so that the encoder's worker processes do not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.data.building import prepare
    from thalweg.data.part import part_of
    from thalweg.data.sampler import WindowSampler
    from thalweg.data.store import TokenSplit, TokenStore
    from thalweg.data.tokenization import check_tokenizer

__all__ = ["TokenSplit", "TokenStore", "WindowSampler", "check_tokenizer", "part_of", "prepare"]

_HOMES = {
    "prepare": "building",
    "part_of": "part",
    "TokenStore": "store",
    "TokenSplit": "store",
    "WindowSampler": "sampler",
    "check_tokenizer": "tokenization",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
