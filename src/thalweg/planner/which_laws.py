"""Which laws a plan uses: those that a wind tunnel has measured for this corpus, the built-in ones, or a file's.

A wind tunnel's laws are kept in the cache folder under the corpus's content and tokenizer, so that "auto" finds them
for exactly the tokens that they were measured on and for nothing else.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from thalweg.cache import cache_folder
from thalweg.data import TokenStore
from thalweg.errors import RunError, UserError
from thalweg.laws.corpus_laws import BUILT_IN, Laws, load
from thalweg.planner import rules
from thalweg.runs import write_text

AUTO = "auto"


def which_laws(said: str, store: TokenStore) -> Laws:
    """The laws that a recipe's `laws` means for a token store.

    Args:
        said: "auto", "built-in" or the path of a laws.json.

    Raises:
        UserError: the file holds no laws.
    """
    if said == BUILT_IN:
        return built_in()
    if said != AUTO:
        return load(Path(said) / "laws.json" if Path(said).is_dir() else said)
    kept = place(store)
    if not kept.is_file():
        return built_in()
    try:
        return load(kept)
    except UserError as error:  # what is in the cache can be made again, and must not refuse a run
        warnings.warn(f"{error.what} ({error.where}): planning with the built-in laws", stacklevel=2)
        return built_in()


def built_in() -> Laws:
    """The laws of the embedded corpus that come with Thalweg."""
    return Laws.from_dict(rules.constants(), "constants.json")


def place(store: TokenStore) -> Path:
    """Where the laws of a token store are kept."""
    content, tokenizer = identity(store)
    digest = hashlib.sha256(json.dumps([content, tokenizer]).encode()).hexdigest()[:32]
    return cache_folder() / "laws" / f"{digest}.json"


def identity(store: TokenStore) -> tuple[str, str]:
    """(content hash, tokenizer hash) of a token store."""
    manifest: dict[str, Any] = store.manifest
    return manifest["content"], manifest["tokenizer_hash"]


def keep(laws: Laws, store: TokenStore) -> Path:
    """Keep laws for "auto"."""
    path = place(store)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(laws.to_dict()) + "\n")
    except OSError as error:
        raise RunError(f"cannot keep the laws: {error.strerror}", where=str(path)) from None
    return path
