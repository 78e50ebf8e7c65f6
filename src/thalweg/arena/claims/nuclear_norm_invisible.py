"""Does the matrix nuclear norm only look? Train twice, with the monitor and without, and compare every bit.

A monitor may not change what it measures: with the same seed each step's loss, the held-out loss and the weights must
be the same numbers, not nearly the same.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.small_run import small_run
from thalweg.runs import Run

STEPS, EVERY = 60, 5


def nuclear_norm_invisible(seed: int = 0, corpus: str = "stdlib") -> Finding:
    """Train 0.2M parameters for 60 steps twice and count what differs; `corpus` as in a recipe."""
    with tempfile.TemporaryDirectory() as folder:
        seen = _trained(f"adamw+linear+matrix_nuclear_norm:every={EVERY}", seed, corpus, Path(folder) / "seen")
        unseen = _trained("adamw+linear", seed, corpus, Path(folder) / "unseen")
    unequal = sum(one != two for one, two in zip(seen["losses"], unseen["losses"], strict=True))
    same = {key: seen[key] == unseen[key] for key in ("held_out", "weights")}
    measured = len(seen["scores"])
    numbers = {
        "steps": STEPS,
        "measurements": measured,
        "steps_with_another_loss": unequal,
        "held_out_bits_per_byte_with": seen["held_out"][-1],
        "held_out_bits_per_byte_without": unseen["held_out"][-1],
        "weights_equal": str(same["weights"]).lower(),
        "mnn": seen["scores"],
    }
    holds = unequal == 0 and all(same.values()) and measured == STEPS // EVERY
    difference = "the same bit for bit" if holds else f"not the same ({unequal} of {STEPS} losses differ)"
    return Finding(
        numbers=numbers,
        holds=holds,
        sentence=(
            f"{STEPS} steps of 0.2M parameters with {measured} measurements and with none: losses, held-out loss and "
            f"weights are {difference}."
        ),
    )


def _trained(arm: str, seed: int, corpus: str, out: Path) -> dict[str, Any]:
    """Losses of all steps, held-out bits per byte of all evaluations, a hash of the weights, the monitor's scores."""
    settings = {"peak_lr": 0.01, "weight_decay": 0.1, "evaluate_every": f"{STEPS // 3} steps"}
    result = small_run(arm, STEPS, seed, corpus, out, **settings)
    run = Run.open(out)
    steps = list(run.metrics("step"))
    return {
        "losses": [line["loss"] for line in steps],
        "scores": [line["mnn"] for line in steps if "mnn" in line],
        "held_out": [line["held_out_bits_per_byte"] for line in run.metrics("evaluation")],
        "weights": hashlib.sha256((result.checkpoint / "model.safetensors").read_bytes()).hexdigest(),
    }
