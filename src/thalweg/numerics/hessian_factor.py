"""A layer's Hessian in the form that column-by-column compression needs: what a column that has changed asks of others.

For a layer y = W x with calibration inputs, H = mean of x x^T [in, in]. Damped, H' = H + d mean(diag H) I, and

    H' = (I + F) D (I + F)^T,      F strictly upper triangular, D diagonal

If the columns before j of a row w0 are settled at q, and those behind it are free to answer, the squared error of the
outputs is least with

    w_j = w0_j + sum over k < j of (w0_k - q_k) F_kj

and rises by at least e^2 D_j if w_j is moved by e from there. Further ahead, see `at_best`. GPTQ's and SparseGPT's
code has the same numbers from the upper factor U of the inverse, H'^-1 = U^T U, where U = D^-1/2 (I + F)^-1, so that
D_j = 1 / U_jj^2. Here nothing is inverted, at a quarter of the operations. Inputs that never were anything but zero
(H_jj = 0) get H_jj = 1, and their weights are of no consequence.

Sources: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022, arXiv:2210.17323);
"SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (2023, arXiv:2301.00774); the form without an
inverse is LDLQ of "QuIP: 2-Bit Quantization of Large Language Models With Guarantees" (2023, arXiv:2307.13304).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Each time that H' is not positive definite in double precision the damping grows by this factor.
RAISED = 10.0
MOST_DAMPING = 100.0


class HessianFactor(NamedTuple):
    """feedback: F [in, in]; cost: D [in]; dead: bool [in], inputs that are always zero; damping: that sufficed."""

    feedback: Tensor
    cost: Tensor
    dead: Tensor
    damping: float


def hessian_factor(hessian: Tensor, damping: float = 0.01) -> HessianFactor:
    """F and D with H' = (I + F) D (I + F)^T.

    Args:
        hessian: [in, in], symmetric, positive semi-definite; float32 or float64, the type of the result, which is
            computed in float64, since little damping can leave H' close to singular; not changed.
        damping: share of the mean of the diagonal that is added to it. Raised tenfold, as often as needed, where the
            matrix is singular (too few calibration tokens).

    Raises:
        ValueError: numbers that are not finite, or no damping suffices.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("the second moments of the inputs are not finite")
    # Cholesky's factor is lower triangular; from the last column to the first it is upper.
    damped = hessian.flip(0, 1).double()
    diagonal = damped.diagonal()
    dead, mean = diagonal == 0, diagonal.mean()
    base = diagonal + dead
    used = damping
    while used <= MOST_DAMPING:
        diagonal.copy_(base + used * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed) and bool(torch.isfinite(lower).all()):
            del damped, diagonal  # matrices of a wide layer, in double precision, are what memory is spent on
            feedback = lower.flip(0, 1)
            del lower
            roots = feedback.diagonal().clone()
            feedback.div_(roots).fill_diagonal_(0.0)
            return HessianFactor(feedback.to(hessian.dtype), roots.square().to(hessian.dtype), dead.flip(0), used)
        used = max(used, 1e-4) * RAISED
    raise ValueError("the second moments of the inputs make no positive definite matrix with any damping")


def at_best(original: Tensor, asked: Tensor, feedback: Tensor) -> Tensor:
    """Where the next columns would be best, all of them together, those before them being settled.

    Args:
        original: w0 of these columns [out, n].
        asked: w0 and what the settled columns ask of each, w0_j + sum over settled k of (w0_k - q_k) F_kj: [out, n].
        feedback: F among these columns [n, n].
    """
    # What they are moved by asks of those behind them: d + d F = asked - w0.
    moved = torch.linalg.solve_triangular(feedback, asked - original, upper=True, left=False, unitriangular=True)
    return original + moved
