"""Round every weight to the nearest number that the format has: the baseline of quantization, without any data.

    w' = scale round(w / scale + zero) - zero ...   with scales from the largest weights of a row or group

The formats and their rules are in `numerics/number_formats.py` and `numerics/float_formats.py`. With `search`, every
group takes the range, as a share of its own, that loses least (`numerics/range_search.py`).

What was pruned before stays zero. A group that does not divide the inputs of a layer becomes its whole row.

Source: common practice; formats: "Low-Precision Training of Large Language Models: Methods, Challenges, and
Opportunities" (2025, arXiv:2505.01043).
"""

from __future__ import annotations

from typing import Any

from thalweg.methods.quantization.grids import grids_of, roundable, settle
from thalweg.models.compression import BlockStep
from thalweg.models.walker import Block


class RTN(BlockStep):
    """Rounding to nearest.

        RTN(bits=4, group=32).compress(model)

    Args:
        bits: of an integer.
        group: a scale for every so many inputs of a row; 0 for a whole row.
        symmetric: integers without a zero point.
        format: "int", or the name of a format of floats such as "mxfp4" or "nvfp4".
        search: whether ranges are searched.
    """

    calibrated = False

    def __init__(
        self, bits: int = 4, group: int = 128, symmetric: bool = True, format: str = "int", search: bool = False
    ) -> None:
        self._grids = grids_of(
            "rtn", {"bits": bits, "group": group, "symmetric": symmetric, "format": format, "search": search}
        )

    def compress_block(self, block: Block) -> dict[str, Any]:
        found = {}
        for name, linear in block.linears.items():
            weight, keep = roundable(linear, f"rtn, {block.name}")
            found[name] = settle(linear, *self._grids.stored_in(linear.weight.dtype).nearest(weight, keep))
        return {"name": block.name, "linears": found}
