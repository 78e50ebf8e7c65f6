"""FOEM: GPTQ with a pull of the weights that are not rounded yet back to where they were before.

When some columns are rounded, the others have drifted from the trained weights W0, where the gradient was zero. To
first order it is H (W - W0) now, and with that term in the quadratic that GPTQ minimises the best correction of a
column i is, for the rows w of W,

    delta = -beta (w - w0) - ((w_i - q_i) - beta (w_i - w0_i)) / [H^-1]_ii H^-1[:, i]

with beta for the trust in the term. As in the authors' code, a column is pulled when its turn comes, not all of them at
every step, which compounds the pull and makes outputs worse; see `columns.py`. All else is GPTQ's (`gptq.py`).

In exact arithmetic that gradient is zero for the columns that are left: GPTQ's corrections are the best there are for
the outputs on the calibration inputs, given the columns that are rounded. So a pull makes layers worse there (on the
small model that claims share 1.15 times the squared error at beta = 0.2, 1.05 at 0.1), and can help on other inputs
only.

Source: "First-Order Error Matters: Accurate Compensation for Quantized Large Language Models" (2025, arXiv:2507.11017),
in the form of its second version as its authors have put it into GPTQModel. Deviations: the first column of every span
is pulled like the others (there a guard leaves it out), so the result does not depend on the span; the term of GPTAQ
(alpha) for inputs of the model in full precision is left out, since the walker has those of the quantized one only.
"""

from __future__ import annotations

from typing import Any

from thalweg.methods.quantization.columns import Columns
from thalweg.methods.quantization.grids import grids_of
from thalweg.models.compression import BlockStep
from thalweg.models.walker import Block


class FOEM(BlockStep):
    """Second-order rounding with a first-order term.

        FOEM(bits=3, group=32).compress(model, calibration)      calibration: int64 [windows, T]

    Args:
        beta: the pull; 0 is GPTQ.
        bits: of an integer.
        group: a scale for every so many inputs of a row; 0 for a whole row.
        symmetric: integers without a zero point.
        format: "int", or the name of a format of floats such as "mxfp4" or "nvfp4".
        search: whether ranges are searched.
        damping: share of the mean of H's diagonal that is added to it.
        act_order: round the columns with the largest inputs first.
        true_sequential: linears of a block one after the other.
    """

    def __init__(
        self,
        beta: float = 0.2,
        bits: int = 4,
        group: int = 128,
        symmetric: bool = True,
        format: str = "int",
        search: bool = False,
        damping: float = 0.01,
        act_order: bool = True,
        true_sequential: bool = False,
    ) -> None:
        options = {"bits": bits, "group": group, "symmetric": symmetric, "format": format, "search": search}
        options |= {"damping": damping, "act_order": act_order, "true_sequential": true_sequential, "beta": beta}
        self._columns = Columns("foem", grids_of("foem", options), damping, act_order, true_sequential, beta)

    def compress_block(self, block: Block) -> dict[str, Any]:
        return self._columns.compress_block(block)
