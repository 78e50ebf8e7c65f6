"""Does a network that tunes its own dropout and weight decay end as low as the best of a grid of fixed rates?

A model of 0.2M parameters meets a few thousand tokens of prose (help topics of pydoc) many times over, so that without
regularisation it overfits badly. Seven runs have fixed dropout and the run's weight decay; one begins at a dropout of
0.05 and tunes both. All have the same number of steps: the tuner's validation steps are among its own, and the windows
that it validates on are taken from what it could have trained on. The grid is judged on the held-out documents, so its
best is chosen by what it is measured with; the tuner never sees them. All of the grid together costs seven runs.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from thalweg.arena.claims.finding import Finding
from thalweg.recipe import Recipe
from thalweg.runs import Run
from thalweg.sessions.train import train

GRID = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
STEPS, CHARACTERS, LONGEST = 300, 20_000, 2_000
FIRST_SEED = 100  # defaults were chosen on seed 0
DATA = {"tokenizer": "bpe:512", "context": 64, "held_out": 0.3}
TRAINING = {
    "batch_size": 4,
    "micro_batch": 4,
    "precision": "float32",
    "compile": "off",
    "peak_lr": 0.007,
    "weight_decay": 0.1,
    "evaluate_every": f"{STEPS} steps",
}
FIXED = "adamw+linear+self_tuning_networks:every=0,dropout={}"
TUNED = "adamw+linear+self_tuning_networks"


def self_tuning(
    seed: int = 0, grid: tuple[float, ...] = GRID, steps: int = STEPS, tuned: str = TUNED, characters: int = CHARACTERS
) -> Finding:
    """Held-out bits a byte of every fixed rate and of the tuner; holds if the tuner is at most the best of them."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        _write(corpus, characters)
        fixed = [
            _trained(FIXED.format(rate), FIRST_SEED + seed, steps, corpus, Path(folder) / f"{rate}") for rate in grid
        ]
        found = _trained(tuned, FIRST_SEED + seed, steps, corpus, Path(folder) / "tuned")
    losses = [run["bits_per_byte"] for run in fixed]
    best = min(range(len(grid)), key=losses.__getitem__)
    worst = max(range(len(grid)), key=losses.__getitem__)
    return Finding(
        numbers={
            "steps": steps,
            "fixed_dropout": list(grid),
            "fixed_bits_per_byte": losses,
            "tuned_bits_per_byte": found["bits_per_byte"],
            "tuned_dropout": found["dropout"],
            "tuned_weight_decay": found["weight_decay"],
        },
        holds=found["bits_per_byte"] <= losses[best],
        sentence=(
            f"0.2M parameters, {steps} steps each, on {characters // 1000} kB: tuned from 0.05 to a dropout of "
            f"{found['dropout']:.2f} and a weight decay of {found['weight_decay']:.2f} the model ends at "
            f"{found['bits_per_byte']:.3f} bits a byte; of {len(grid)} fixed rates the best, {grid[best]:g}, at "
            f"{losses[best]:.3f}, the worst, {grid[worst]:g}, at {losses[worst]:.3f}."
        ),
    )


def _write(folder: Path, characters: int) -> None:
    """Help topics in an order of their own, a document each, until there are so many characters."""
    from pydoc_data.topics import topics

    folder.mkdir()
    names = sorted(topics)
    random.Random(0).shuffle(names)
    for name in names:
        text = topics[name][: min(LONGEST, characters)]
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        characters -= len(text)
        if characters <= 0:
            break


def _trained(arm: str, seed: int, steps: int, corpus: Path, out: Path) -> dict[str, Any]:
    """Held-out bits a byte, and the hyperparameters at the end."""
    data = {"corpus": str(corpus), **DATA}
    recipe = Recipe.parse(arm, budget=f"{steps} steps", model="0.2M", seed=seed, data=data, training=TRAINING)
    result = train(recipe, out, quiet=True, show=False)
    last = list(Run.open(out).metrics("step"))[-1]
    return {
        "bits_per_byte": round(result.bits_per_byte or float("inf"), 4),
        "dropout": round(last["dropout"], 4),
        "weight_decay": round(last.get("weight_decay", TRAINING["weight_decay"]), 4),
    }
