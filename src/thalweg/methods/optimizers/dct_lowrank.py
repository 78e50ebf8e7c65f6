"""DCT-AdamW: Adam for hidden matrices in a subspace of r columns of the DCT matrix, chosen anew in every step.

Q [n, n] is one orthogonal matrix for all layers of a width (`dct_basis`). For a gradient G [m, n] with m >= n (a wide
one is transposed) and every T steps

    A = G + E                                       E: what earlier steps left out, 0 without error feedback
    idx = the r columns of A Q with the largest norms

and in every step

    R = A Q[:, idx]                                 [m, r]
    E = A - R Q[:, idx]^T
    N = Adam(R)                                     bias-corrected; its moments have R's shape
    W = W (1 - lr wd) - lr alpha N Q[:, idx]^T

Since all columns come from one orthogonal matrix, moving the moments to new columns is exact bookkeeping: those of an
index that stays go with it, a new index begins at 0 (`rotate`; without it moments stay where they were, in the slots of
other columns). A layer keeps r integers instead of a projector, and there is no decomposition.

Error feedback costs a buffer of the size of the matrix: exact, or in 8 or 4 bits with a minimum and a step a row.
Embeddings, heads and vectors get AdamW inside the same optimizer.

Source: "FFT-based Dynamic Subspace Selection for Low-Rank Adaptive Optimization of Large Language Models" (2025,
arXiv:2505.17967; the first version was called "SVD-Free Low-Rank Adaptive Gradient Optimization").

Where we deviate from the official code, whose equations these are: rotation is on by default (theirs off), the columns
are those of the DCT-II for both transforms (its product uses the transposed matrix, its FFT this one), subspaces
change in steps 1, T + 1, 2 T + 1 (theirs 1, T, 2 T), quantised errors are spread over all 255 steps of a byte (theirs
over 15), betas are those of our AdamW (theirs 0.9, 0.999), and alpha is ours, to compare with GaLore (1: theirs).
Apart from these the walk is that of the official code with its FFT, to rounding; its rotation, a product of floats,
lets 1e-8 of other columns' moments into new slots, where ours are 0.
`basis = "random"` has the same selection from a random orthogonal matrix; Hadamard is left out, and so is DCT-FRUGAL.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.methods.optimizers.adamw_update import adamw_update
from thalweg.methods.optimizers.base import Base, Group
from thalweg.methods.optimizers.dct_basis import aligned, basis_rows, carried, coefficients, columns
from thalweg.methods.optimizers.error_memory import recall, remember
from thalweg.methods.optimizers.low_rank import Stack, stacks


class DCTAdamW(Base):
    """DCT-AdamW for groups of kind "matrix", AdamW for the others.

    Kinds and shapes are told apart as in `Muon`.

    Args:
        params: parameters or groups.
        lr: learning rate.
        weight_decay: decoupled, multiplied by the learning rate.
        rank: of the subspace; below 1 a share of the shorter side of a matrix.
        update_proj_gap: steps between two subspaces, T above.
        alpha: factor on the learning rate of matrices.
        ell_norm: 1 or 2, the norm by which columns are chosen.
        rotate: carry the moments over to a new subspace.
        error_feedback: none, exact, 8bit or 4bit.
        basis: dct, or random for comparison.
        transform: matmul or fft, how A Q is computed.
        beta1: memory of the first moment.
        beta2: memory of the second moment.
        eps: added to the root of the second moment.

    Raises:
        RecipeError: an option out of range, or a matrix group with a vector in it.
    """

    card = "dct_lowrank"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        *,
        rank: float = 0.25,
        update_proj_gap: int = 1,
        alpha: float = 1.0,
        ell_norm: int = 1,
        rotate: bool = True,
        error_feedback: str = "none",
        basis: str = "dct",
        transform: str = "matmul",
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
            ell_norm=ell_norm,
            rotate=rotate,
            error_feedback=error_feedback,
            basis=basis,
            transform=transform,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
        )

    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """DCT-AdamW for the hidden matrices, AdamW for the others."""
        matrices, others = self.split(group, parameters)
        for stack in stacks(self, group, matrices):
            feedback = group["error_feedback"]
            gradients = self.grads(stack.parameters)
            if feedback != "none":
                gradients = list(torch._foreach_add(recall(self, stack.parameters, feedback), gradients))
            whole = stack.whole(gradients)
            low, subspace, mix = _projected(stack, whole)
            if feedback != "none":
                left_out = stack.shards(torch.baddbmm(whole, low, subspace, alpha=-1.0))
                remember(self, stack.parameters, left_out, feedback)
            direction = stack.adam(low, mix)
            stack.subtract_product(direction, subspace, group["lr"] * group["alpha"])
        adamw_update(self, group, others)


def _projected(stack: Stack, whole: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """R [b, m, r], Q[:, idx]^T [b, r, n], and what moves the moments [b, r, r] where the subspace is a new one."""
    group = stack.group
    rows = basis_rows(group["basis"], stack.columns, whole.dtype, whole.device)
    previous = stack.copies("indices", (stack.rank,), torch.int64)
    if not stack.refreshes(group["update_proj_gap"]):
        subspace = rows[previous]
        return whole @ subspace.mT, subspace, None
    transformed = coefficients(whole, group["basis"], group["transform"])
    indices = aligned(transformed, stack.rank, group["ell_norm"])
    stack.keep("indices", indices)
    moves = group["rotate"] and stack.step > 1
    mix = carried(previous, indices, whole.dtype) if moves else None
    return columns(transformed, indices), rows[indices], mix
