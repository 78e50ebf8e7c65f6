"""Does a pull towards the trained weights make GPTQ better, in layers and in held-out loss, at 3 bits?

Both quantize the trained model on the same draws of calibration text, ten of them, so differences are of pairs. In
exact arithmetic GPTQ's corrections are the best there are for the outputs of a layer on the calibration inputs, once
the columns before are rounded; so errors of layers are looked at, but the claim asks for the loss on held-out text.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from thalweg import catalog
from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.trained import CONTEXT, Trained, trained
from thalweg.models.evaluate import evaluate

BITS, GROUP, WINDOWS, DRAWS = 3, 0, 32, 10
TOKENS = 20_000  # held-out, of each evaluation


def foem_against_gptq(
    seed: int = 0, bits: int = BITS, group: int = GROUP, windows: int = WINDOWS, draws: int = DRAWS
) -> Finding:
    """Paired differences, FOEM less GPTQ."""
    start = trained()
    losses, errors = [], []
    for draw in range(draws * seed, draws * (seed + 1)):
        found = {
            name: _quantized(start, catalog.resolve(name)(bits=bits, group=group), windows, draw)
            for name in ("foem", "gptq")
        }
        losses.append(found["foem"][0] - found["gptq"][0])
        pairs = zip(found["foem"][1], found["gptq"][1], strict=True)
        errors.append(statistics.fmean(one / other for one, other in pairs))
    mean = statistics.fmean(losses)
    spread = statistics.stdev(losses) / math.sqrt(draws) if draws > 1 else math.inf
    lower = sum(error < 1.0 for error in errors)
    return Finding(
        numbers={
            "held-out loss, foem less gptq": [round(value, 5) for value in losses],
            "mean": round(mean, 5),
            "standard error": round(spread, 5) if draws > 1 else None,
            "error of layers, foem over gptq": [round(value, 4) for value in errors],
            "draws with a lower loss": sum(value < 0 for value in losses),
            "draws with a lower error of layers": lower,
        },
        holds=mean < -2.0 * spread,
        sentence=(
            f"Held-out loss with {bits}-bit weights: FOEM less GPTQ is {mean:+.5f} (standard error {spread:.5f}, "
            f"{sum(value < 0 for value in losses)} of {draws} draws of calibration text lower); the squared error of "
            f"layers on the calibration inputs is {statistics.fmean(errors):.3f} times GPTQ's, lower in {lower} of "
            f"{draws}."
        ),
    )


def _quantized(start: Trained, step: Any, windows: int, draw: int) -> tuple[float, list[float]]:
    """Held-out loss, and the squared error of every layer's outputs on the calibration inputs."""
    model = start.model()
    found = step.compress(model, start.calibration(windows, draw))
    loss = evaluate(model, start.store.held_out, context=CONTEXT, batch_size=32, max_tokens=TOKENS).loss
    return loss, [layer["output_error"] for block in found["blocks"] for layer in block["linears"].values()]
