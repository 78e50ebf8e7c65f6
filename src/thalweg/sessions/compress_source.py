"""What a compression begins with: the model's folder, the text it is calibrated on, and the text it is measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from thalweg.data import TokenStore, part_of, prepare
from thalweg.errors import ModelError
from thalweg.runs import Run
from thalweg.sessions.evaluate import DEFAULT_CONTEXT, own_store


def texts(path: Path, source: Path, calibration: str | None) -> tuple[TokenStore, Any]:
    """The store that calibration is drawn from, and the held-out documents that are evaluated."""
    if (path / "recipe.toml").is_file():
        recipe = Run.open(path).recipe
        own = own_store(recipe)
        store = own if calibration is None else prepare(calibration, tokenizer=str(source))
        return store, part_of(own.held_out, recipe.data.evaluate_on)
    store = prepare(calibration or "stdlib", tokenizer=str(source))
    return store, store.held_out


def available(store: TokenStore, context: int) -> int:
    """How many windows a corpus has; at least one is asked for, so that one that has none says so."""
    return max(1, (store.train.token_count - 1) // context)


def check_numbers(windows: int, tokens: int) -> None:
    """Raises ModelError where there would be nothing to calibrate or to measure on."""
    for name, value, least in (("--windows", windows, 1), ("--tokens", tokens, 2)):
        if value < least:
            raise ModelError(f"{value} is too few", where=name, fix=f"Give {least} or more.")


def context_for(model: Any, wanted: int | None) -> int:
    """Tokens in a calibration window: as many as are wanted, or as the model holds up to `DEFAULT_CONTEXT`.

    Raises:
        ModelError: the model does not hold so many.
    """
    held = getattr(model.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_CONTEXT
    if wanted is not None and not 2 <= wanted <= held:
        raise ModelError(
            f"windows of {wanted} tokens do not fit a model of {held}", where="--context", fix=f"Give 2 to {held}."
        )
    return wanted or min(held, DEFAULT_CONTEXT)


def stored_dtype(folder: Path) -> torch.dtype:
    """The type that the weights have on disk: compression must not begin by making them larger."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return torch.float32  # `load` says what is wrong with the folder
    name = said.get("dtype") or said.get("torch_dtype") or "float32"
    found = getattr(torch, str(name), None)
    return found if isinstance(found, torch.dtype) and found.is_floating_point else torch.float32


def check_finite(model: Any, source: Path) -> None:
    """Raises ModelError where a parameter holds NaN or infinity, embeddings and norms too."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                f"{name} holds weights that are not finite", where=str(source), fix="Take an earlier checkpoint."
            )
