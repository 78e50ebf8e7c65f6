"""Which 4-bit format loses least when weights are rounded to nearest?

NVFP4 has an 8-bit scale for 16 inputs; symmetric integers with a 16-bit scale for 32 inputs are as dear (4.5 bits a
weight); MXFP4 has 8 bits for 32 (4.25). Integers are rounded here with float32 scales: rounding those to 16 bits would
change weights by a hundredth of what the 4 bits do. Counted is the held-out loss that rounding all linear layers of the
blocks adds, and beside it the squared relative error of the weights.

The order that is known from Gaussian numbers, and from training, has MXFP4 last, and the others close to each other.
"""

from __future__ import annotations

import statistics

from thalweg import catalog
from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.trained import trained

ARMS: dict[str, dict[str, int | str]] = {
    "nvfp4": {"format": "nvfp4"},
    "int4": {"bits": 4, "group": 32},
    "mxfp4": {"format": "mxfp4"},
    "mxfp4_ceil": {"format": "mxfp4_ceil"},
}
CLOSE = 1.25  # NVFP4's loss over that of integers


def four_bit_formats(seed: int = 0) -> Finding:
    """Held-out loss that each adds."""
    start = trained(seed)
    whole = start.evaluation(start.model()).loss
    added: dict[str, float] = {}
    errors: dict[str, float] = {}
    for arm, options in ARMS.items():
        model = start.model()
        found = catalog.resolve("rtn")(**options).compress(model)
        added[arm] = start.evaluation(model).loss - whole
        errors[arm] = statistics.fmean(
            layer["weight_error"] for block in found["blocks"] for layer in block["linears"].values()
        )
    return Finding(
        numbers={
            "loss": round(whole, 4),
            **{f"added, {arm}": round(value, 5) for arm, value in added.items()},
            **{f"squared error, {arm}": round(value, 5) for arm, value in errors.items()},
        },
        holds=max(added["nvfp4"], added["int4"]) < added["mxfp4"] and added["nvfp4"] <= CLOSE * added["int4"],
        sentence=(
            f"Held-out loss over {whole:.4f} in full precision: {added['nvfp4']:+.4f} with NVFP4 and "
            f"{added['int4']:+.4f} with integers in groups of 32 (4.5 bits a weight), {added['mxfp4']:+.4f} with MXFP4 "
            f"({added['mxfp4_ceil']:+.4f} with its scales rounded up; 4.25 bits)."
        ),
    )
