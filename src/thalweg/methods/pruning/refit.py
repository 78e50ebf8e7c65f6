"""The best weights for a mask that is given: what any one-shot pruner can at most reach with it.

    min over w' with support S of (w' - w)^T H (w' - w)        w'_S = H_SS^-1 (H w)_S,   row by row

with H [in, in] the (perhaps damped) mean of x x^T over calibration inputs. One system of |S| equations a row: meant for
small layers and for tests.

Source: the normal equations; as a bound, in "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot"
(2023, arXiv:2301.00774), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.errors import ModelError

# Numbers of the systems that are held at once: 128 MB in float64.
_AT_ONCE = 1 << 24


def refit(weight: Tensor, keep: Tensor, hessian: Tensor) -> Tensor:
    """Weights [out, in] that are zero where a mask says so and closest to `weight` in the outputs.

    Args:
        weight: [out, in], before pruning.
        keep: bool [out, in].
        hessian: [in, in], mean of x x^T; positive definite on the inputs that a row keeps.

    Raises:
        ModelError: a row's system is singular.
    """
    exact = hessian.double()
    identity = torch.eye(len(exact), dtype=torch.float64, device=exact.device)
    pieces = []
    rows = max(1, _AT_ONCE // exact.numel())
    for part, mask in zip(weight.double().split(rows), keep.double().split(rows), strict=True):
        # On what is pruned the system is the identity with nothing on the right, which has the answer zero.
        systems = exact * mask[:, :, None] * mask[:, None, :] + torch.diag_embed(1.0 - mask) * identity
        answers, failed = torch.linalg.solve_ex(systems, ((part @ exact) * mask)[:, :, None])
        if bool(failed.any()) or not bool(answers.isfinite().all()):
            raise ModelError(
                "The Hessian is singular on the weights that a row keeps.",
                where="refit",
                fix="Give more calibration tokens than inputs, or add a share of its mean to the diagonal.",
            )
        pieces.append(answers.squeeze(-1) * mask)
    return torch.cat(pieces).to(weight.dtype)
