"""Fira: GaLore that also applies what its projection throws away, scaled by what Adam does inside the subspace.

With P, R = G P and N = Adam(R) of `galore` (G [m, n], m >= n, a wide one transposed), row by row i of the long side,

    phi_i = |N_i| / |R_i|                           how much Adam rescales the norm of this row in the subspace
    S_i = phi_i (G - alpha R P^T)_i                 the rest of the gradient gets the same scaling, without state
    if |S| > gamma |S_before|:  S = S gamma |S_before| / |S|
    W = W (1 - lr wd) - lr (alpha N P^T + S)

so that updates have full rank. |S_before| is the norm after limiting, one number of state a matrix: the norm of the
residual grows by at most 1% a step, which takes the spikes out. The limit acts on S alone, on the device.

    residual     code    as above, and the limiter compares norms before Adam's bias correction: the official code
                 paper   S_i = phi_i (G - R P^T)_i, orthogonal to the subspace, limited as it is applied
    scaling      column  one phi for each row of G's long side; matrix: one for all
    projector    svd     as GaLore
                 dct     r columns of the DCT matrix, see `dct_lowrank` ("DCT-Fira"): r integers instead of n r numbers

Sources: "Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?" (2024, arXiv:2410.01623); the DCT
projector: "FFT-based Dynamic Subspace Selection for Low-Rank Adaptive Optimization of Large Language Models" (2025,
arXiv:2505.17967).

Where we deviate: as in `galore`; and where the norm before was 0, S is not limited (the official code adds 1e-8 to that
norm, which after one gradient of zeros leaves S as good as nothing for more than a thousand steps). Their RMSProp form
is beta1 = 0, with bias correction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.methods.optimizers.adamw_update import adamw_update
from thalweg.methods.optimizers.base import Base, Group
from thalweg.methods.optimizers.dct_basis import aligned_subspace
from thalweg.methods.optimizers.low_rank import Stack, singular_subspace, stacks

# Added to |R_i|: rows without a gradient in the subspace must not divide by zero. The official code's number.
FLOOR = 1e-8


class Fira(Base):
    """Fira for groups of kind "matrix", AdamW for the others.

    Kinds and shapes are told apart as in `Muon`.

    Args:
        params: parameters or groups.
        lr: learning rate.
        weight_decay: decoupled, multiplied by the learning rate.
        rank: of the subspace; below 1 a share of the shorter side of a matrix.
        update_proj_gap: steps between two subspaces.
        alpha: factor on what is inside the subspace.
        gamma: how much the norm of the residual may grow from one step to the next.
        residual: code or paper, see above.
        scaling: column or matrix, see above.
        projector: svd or dct, see above.
        beta1: memory of the first moment.
        beta2: memory of the second moment.
        eps: added to the root of the second moment.

    Raises:
        RecipeError: an option out of range, or a matrix group with a vector in it.
    """

    card = "fira"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        *,
        rank: float = 0.25,
        update_proj_gap: int = 50,
        alpha: float = 0.25,
        gamma: float = 1.01,
        residual: str = "code",
        scaling: str = "column",
        projector: str = "svd",
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay,
            rank=rank,
            update_proj_gap=update_proj_gap,
            alpha=alpha,
            gamma=gamma,
            residual=residual,
            scaling=scaling,
            projector=projector,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
        )

    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """Fira for the hidden matrices, AdamW for the others."""
        matrices, others = self.split(group, parameters)
        for stack in stacks(self, group, matrices):
            gradients = stack.whole(self.grads(stack.parameters))
            choose = {"svd": singular_subspace, "dct": aligned_subspace}[group["projector"]]
            subspace = choose(stack, gradients, group["update_proj_gap"])
            low = gradients @ subspace
            direction = stack.adam(low)
            outside = 1.0 if group["residual"] == "paper" else group["alpha"]
            residual = torch.baddbmm(gradients, low, subspace.mT, alpha=-outside)
            scaling = _scaling(low, direction, group["scaling"])
            norms = torch.linalg.vector_norm(scaling * _row_norms(residual), dim=(-2, -1), keepdim=True)
            residual.mul_(scaling * _limit(stack, norms))
            stack.subtract(residual.baddbmm_(direction, subspace.mT, alpha=group["alpha"]), group["lr"])
        adamw_update(self, group, others)


def _row_norms(matrices: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrices, dim=-1, keepdim=True)


def _scaling(low: Tensor, direction: Tensor, scaling: str) -> Tensor:
    """phi, [b, m, 1] or [b, 1, 1], from R and N [b, m, r]."""
    norms, reached = _row_norms(low), _row_norms(direction)
    if scaling == "matrix":
        norms, reached = norms.norm(dim=-2, keepdim=True), reached.norm(dim=-2, keepdim=True)
    return reached / (norms + FLOOR)


def _limit(stack: Stack, norms: Tensor) -> Tensor:
    """The factors on S that limit its growth, from its norms (both [b, 1, 1]); remembers what is left of the norms.

    Nothing is asked of the device.
    """
    group = stack.group
    beta1, beta2 = group["betas"]
    correction = math.sqrt(1.0 - beta2**stack.step) / (1.0 - beta1**stack.step)
    norms = norms / (correction if group["residual"] == "code" else 1.0)
    before = stack.copies("residual_norm", (1, 1), norms.dtype)
    limited = torch.where(before > 0, torch.minimum(norms, group["gamma"] * before), norms)
    stack.keep("residual_norm", limited)
    return limited / norms.clamp_min(torch.finfo(norms.dtype).tiny)
