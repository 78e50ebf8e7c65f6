"""GaLore: Adam for hidden matrices in a low-rank subspace of their gradients, found anew by an SVD now and then.

For a gradient G [m, n] with m >= n (a wide one is transposed) and every T steps

    P = the right singular vectors of G with the r largest singular values       [n, r]

and in every step

    R = G P                                         [m, r]
    N = Adam(R)                                     bias-corrected; its moments have R's shape
    W = W (1 - lr wd) - lr alpha N P^T

Every update has rank r, but subspaces follow each other, so the weights do not stay low-rank. State: 2 m r + n r
numbers a matrix instead of AdamW's 2 m n. When P changes the moments are kept as they are, though they belong to the
old subspace (`dct_lowrank` carries them over). Embeddings, heads and vectors get AdamW inside the same optimizer, with
the same lr: alpha is how much smaller the steps of matrices are.

Source: "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection" (2024, arXiv:2403.03507).

Where we deviate: the rank may be a share of the short side, since one number does not fit a ladder of sizes; T is 50
(200 in the paper's runs of 10,000 steps and more); betas and eps are those of our AdamW (theirs 0.9, 0.999, 1e-6), so
that the two arms differ in the projection alone; eps stands beside the corrected root (the official code adds it
before the correction, which makes it eps / sqrt(1 - beta2^t)); weights decay before the step, not after it (a
difference of lr^2 wd); signs of singular vectors are fixed (see `low_rank`), on which the moments depend once P has
changed. Apart from these the walk is the official code's to rounding. Its other sides and its 4-bit projector are left
out.
"""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.methods.optimizers.adamw_update import adamw_update
from thalweg.methods.optimizers.base import Base, Group
from thalweg.methods.optimizers.low_rank import singular_subspace, stacks


class GaLore(Base):
    """GaLore for groups of kind "matrix", AdamW for the others.

    Kinds and shapes are told apart as in `Muon`.

    Args:
        params: parameters or groups.
        lr: learning rate; matrices move by alpha times it.
        weight_decay: decoupled, multiplied by the learning rate (without alpha).
        rank: of the subspace; below 1 a share of the shorter side of a matrix.
        update_proj_gap: steps between two subspaces, T above.
        alpha: factor on the learning rate of matrices.
        beta1: memory of the first moment.
        beta2: memory of the second moment.
        eps: added to the root of the second moment.

    Raises:
        RecipeError: an option out of range, or a matrix group with a vector in it.
    """

    card = "galore"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        *,
        rank: float = 0.25,
        update_proj_gap: int = 50,
        alpha: float = 0.25,
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
            beta1=beta1,
            beta2=beta2,
            eps=eps,
        )

    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """GaLore for the hidden matrices, AdamW for the others."""
        matrices, others = self.split(group, parameters)
        for stack in stacks(self, group, matrices):
            gradients = stack.whole(self.grads(stack.parameters))
            subspace = singular_subspace(stack, gradients, group["update_proj_gap"])
            direction = stack.adam(gradients @ subspace)
            stack.subtract_product(direction, subspace.mT, group["lr"] * group["alpha"])
        adamw_update(self, group, others)
