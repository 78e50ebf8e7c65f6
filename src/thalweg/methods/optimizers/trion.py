"""Trion: Muon on the part of the momentum that r columns of the DCT matrix carry; the rest waits in the buffer.

With the columns idx of the basis Q that fit the buffer best (`dct_basis`), in every step, for a gradient G [m, n] with
m >= n (a wide one is transposed),

    B = M + G
    L = B Q[:, idx]                                 [m, r]
    M = B - (1 - momentum) L Q[:, idx]^T            only what is sent decays: error feedback inside the buffer
    W = W (1 - lr wd) - lr scale NewtonSchulz(L) Q[:, idx]^T

This is Dion with the columns of a fixed matrix instead of a power iteration. Newton-Schulz works on [m, r], and across
machines only [m, r] and r integers would have to travel; the buffer is of full size, so memory is Muon's. The scales
are Muon's (kimi, kj, spectral, none). Embeddings, heads and vectors get AdamW inside the same optimizer.

Source: "FFT-based Dynamic Subspace Selection for Low-Rank Adaptive Optimization of Large Language Models" (2025,
arXiv:2505.17967).

Where we deviate from the official code: kimi's scale is the default, as in our Muon; the AdamW part has its eps, 1e-8
(theirs 1e-10); every rank computes all updates (theirs share the matrices out and exchange L).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.methods.optimizers.adamw_update import adamw_update
from thalweg.methods.optimizers.base import Base, Group
from thalweg.methods.optimizers.dct_basis import aligned, basis_rows, coefficients, columns
from thalweg.methods.optimizers.low_rank import stacks
from thalweg.methods.optimizers.muon_update import scale_of
from thalweg.methods.optimizers.newton_schulz import newton_schulz


class Trion(Base):
    """Trion for groups of kind "matrix", AdamW for the others.

    Kinds and shapes are told apart as in `Muon`.

    Args:
        params: parameters or groups.
        lr: learning rate for both parts.
        weight_decay: decoupled, multiplied by the learning rate.
        rank: of the subspace; below 1 a share of the shorter side of a matrix.
        momentum: what is left in the buffer of what was sent.
        ell_norm: 1 or 2, the norm by which columns are chosen.
        ns_steps: Newton-Schulz iterations.
        scale: kimi, kj, spectral or none, see `Muon`.
        dtype: number format of the iteration: auto, bfloat16 or float32.
        basis: dct, or random for comparison.
        transform: matmul or fft, how B Q is computed.
        beta1: AdamW part, memory of the first moment.
        beta2: AdamW part, memory of the second moment.
        eps: AdamW part, added to the root of the second moment.

    Raises:
        RecipeError: an option out of range, or a matrix group with a vector in it.
    """

    card = "trion"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        weight_decay: float = 0.1,
        *,
        rank: float = 0.25,
        momentum: float = 0.95,
        ell_norm: int = 1,
        ns_steps: int = 5,
        scale: str = "kimi",
        dtype: str = "auto",
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
            momentum=momentum,
            ell_norm=ell_norm,
            ns_steps=ns_steps,
            scale=scale,
            dtype=dtype,
            basis=basis,
            transform=transform,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
        )

    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """Trion for the hidden matrices, AdamW for the others."""
        matrices, others = self.split(group, parameters)
        for stack in stacks(self, group, matrices):
            buffers = self.buffers(stack.parameters, "momentum_buffer")
            torch._foreach_add_(buffers, self.grads(stack.parameters))
            whole = stack.whole(buffers)
            transformed = coefficients(whole, group["basis"], group["transform"])
            indices = aligned(transformed, stack.rank, group["ell_norm"])
            low = columns(transformed, indices)
            subspace = basis_rows(group["basis"], stack.columns, whole.dtype, whole.device)[indices]
            torch._foreach_sub_(buffers, stack.shards(low @ subspace), alpha=1.0 - group["momentum"])
            factors = newton_schulz(low, group["ns_steps"], group["dtype"])
            scales = [scale_of(parameter, group) for parameter in stack.parameters]
            torch._foreach_mul_(list(factors.split(stack.counts)), scales)
            stack.subtract_product(factors, subspace, group["lr"])
        adamw_update(self, group, others)
