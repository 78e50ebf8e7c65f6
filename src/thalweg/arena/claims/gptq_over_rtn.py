"""Does correcting the columns that are left keep what rounding to nearest loses, at 3 bits with one scale a row?

The trained model is quantized by rounding to nearest, and by GPTQ on several draws of calibration text, on the same
grid (symmetric, scales from the largest weight of a row). Counted is the loss on held-out text that is added to that of
the model in full precision; the claim asks for no more than half of it, whatever the draw.
"""

from __future__ import annotations

from thalweg import catalog
from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.trained import trained

BITS, WINDOWS, DRAWS = 3, 64, 3
ENOUGH = 0.5  # of the loss that rounding to nearest adds


def gptq_over_rtn(seed: int = 0, bits: int = BITS, windows: int = WINDOWS, draws: int = DRAWS) -> Finding:
    """Held-out loss that each adds."""
    start = trained()
    whole = start.evaluation(start.model()).loss

    def added(name: str, draw: int) -> float:
        model = start.model()
        catalog.resolve(name)(bits=bits, group=0).compress(model, start.calibration(windows, draw))
        return start.evaluation(model).loss - whole

    rounded = added("rtn", 0)
    corrected = [added("gptq", draw) for draw in range(draws * seed, draws * (seed + 1))]
    worst = max(corrected)
    return Finding(
        numbers={
            "loss": round(whole, 4),
            "added by rtn": round(rounded, 4),
            "added by gptq": [round(value, 4) for value in corrected],
        },
        holds=worst <= ENOUGH * rounded and rounded > 0,
        sentence=(
            f"Held-out loss with {bits}-bit weights and one scale a row, over {whole:.4f} in full precision: "
            f"{rounded:+.4f} rounded to nearest, {min(corrected):+.4f} to {worst:+.4f} with GPTQ on {draws} draws of "
            f"{windows} calibration windows."
        ),
    )
