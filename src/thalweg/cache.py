"""Where what can be made again is kept: token stores, machine profiles, measured divisions."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(said: str | Path | None = None) -> Path:
    """`said`, or $THALWEG_CACHE, or ~/.cache/thalweg."""
    return Path(said or os.environ.get("THALWEG_CACHE") or "~/.cache/thalweg").expanduser()
