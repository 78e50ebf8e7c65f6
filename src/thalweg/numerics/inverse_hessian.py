"""The inverse of a layer's Hessian in the form that column-by-column compression needs.

For a layer y = W x with calibration inputs, H = mean of x x^T [in, in]. Damped, H' = H + d mean(diag H) I, and with the
upper factor U of the inverse, H'^-1 = U^T U, the rows of U hold what the optimal correction of the columns after i
needs: (H'[i:, i:])^-1[0, :] = U[i, i] U[i, i:]. Inputs that never were anything but zero (H_jj = 0) get H_jj = 1, and
their weights are of no consequence.

Sources: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022, arXiv:2210.17323);
"SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (2023, arXiv:2301.00774).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Each time that H' is not positive definite in this precision the damping grows by this factor.
RAISED = 10.0
MOST_DAMPING = 100.0


class InverseFactor(NamedTuple):
    """upper: U [in, in]; dead: bool [in], inputs that are always zero; damping: the one that sufficed."""

    upper: Tensor
    dead: Tensor
    damping: float


def inverse_factor(hessian: Tensor, damping: float = 0.01) -> InverseFactor:
    """U with H'^-1 = U^T U, U upper triangular.

    Args:
        hessian: [in, in], symmetric, positive semi-definite; float32 or float64; not changed.
        damping: share of the mean of the diagonal that is added to it. Raised tenfold, as often as needed, where the
            matrix is singular (too few calibration tokens).

    Raises:
        ValueError: numbers that are not finite, or no damping suffices.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("the second moments of the inputs are not finite")
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    mean = diagonal.mean()
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    base = hessian + torch.diag(dead.to(hessian.dtype))
    used = damping
    while used <= MOST_DAMPING:
        lower, failed = torch.linalg.cholesky_ex(base + used * mean * identity)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed) and bool(torch.isfinite(upper).all()):
                return InverseFactor(upper, dead, used)
        used = max(used, 1e-4) * RAISED
    raise ValueError("the second moments of the inputs cannot be inverted with any damping")
