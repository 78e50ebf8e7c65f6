"""A run of 0.2M parameters through `thalweg.train`, as a user's would be, for claims that ask what is in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thalweg.recipe import Recipe
from thalweg.sessions.train import Result, train

DATA = {"tokenizer": "bpe:512", "context": 64}
# With what a claim itself says, all that a machine's speed could decide: two runs have one plan.
TRAINING = {"batch_size": 8, "micro_batch": 8, "precision": "float32", "compile": "off"}


def small_run(arm: str, steps: int, seed: int, corpus: str, out: Path, **training: Any) -> Result:
    """Train an arm in the folder `out`.

    Args:
        corpus: as in a recipe.
        training: `peak_lr`, `weight_decay` and what else stands under that key of a recipe.

    Raises:
        TrainingError: a run that cannot go on; its folder has what it wrote until then.
    """
    data, training = {"corpus": corpus, **DATA}, {**TRAINING, **training}
    recipe = Recipe.parse(arm, budget=f"{steps} steps", model="0.2M", seed=seed, data=data, training=training)
    return train(recipe, out, quiet=True, show=False)
