"""A small trained model for claims about models that are trained already, made once and kept.

1M parameters, two and a half million tokens of the standard library: minutes on one core, once, after which its weights
and activations have the structure that compression finds or destroys.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.arena.sources import loop_hash, method_hash
from thalweg.cache import cache_folder
from thalweg.models.evaluate import Evaluation, evaluate
from thalweg.models.folder import load
from thalweg.recipe import Recipe

CONTEXT = 128
EVALUATED = 60_000  # held-out tokens
ARM = "adamw+linear"


@dataclass(frozen=True)
class Trained:
    """A model and its corpus.

    Attributes:
        folder: of the checkpoint, as Hugging Face saves it.
        store: the token store that it was trained on.
    """

    folder: Path
    store: Any

    def model(self) -> Any:
        """A copy of the model, in evaluation mode."""
        return load(self.folder)[0].eval()

    def calibration(self, windows: int, seed: int = 0) -> Tensor:
        """Windows of training text, int64 [windows, CONTEXT], drawn with this seed."""
        from thalweg.data import WindowSampler

        batch = WindowSampler(self.store.train, CONTEXT, windows, seed + 1000).batch(0)
        return batch["input_ids"]

    def evaluation(self, model: Any) -> Evaluation:
        """Bits per byte and loss on held-out text, always the same."""
        return evaluate(model, self.store.held_out, context=CONTEXT, batch_size=32, max_tokens=EVALUATED)


def trained(seed: int = 0, model: str = "1M", steps: int = 2400) -> Trained:
    """The model of this seed; trained at the first call, and found again while the code of training is the same."""
    from thalweg.sessions.evaluate import own_store
    from thalweg.sessions.train import train

    recipe = Recipe.parse(
        ARM,
        budget=f"{steps} steps",
        model=model,
        seed=seed,
        data={"context": CONTEXT},
        # With what a claim itself says, all that a machine's speed could decide.
        training={"batch_size": 8, "micro_batch": 8, "precision": "float32", "compile": "off"},
    )
    names = sorted(choice.name for choice in recipe.choices)
    key = f"{model}-{steps}-{seed}-{loop_hash(names)[:8]}{method_hash(names)[:8]}-{torch.__version__}"
    folder = cache_folder() / "trained" / key
    if not folder.is_dir():
        # Beside its name, since several processes may want it at once; the first one that is done is taken.
        own = folder.with_name(f"{key}.{os.getpid()}")
        shutil.rmtree(own, ignore_errors=True)
        train(recipe, own, quiet=not sys.stderr.isatty(), show=False)
        with suppress(OSError):
            os.replace(own, folder)
        shutil.rmtree(own, ignore_errors=True)
    return Trained(folder / "checkpoints" / "latest", own_store(recipe))
