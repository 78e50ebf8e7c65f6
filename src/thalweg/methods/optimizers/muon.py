"""Muon: momentum for hidden matrices, with every direction of the update given the same length.

    B = beta B + (1 - beta) G                   G [m, n] the gradient of a hidden weight
    U = (1 - beta) G + beta B                   (Nesterov; without it U = B)
    O = NewtonSchulz(U)                         about U's polar factor, see `newton_schulz`
    W = W (1 - lr wd) - lr scale O

Embeddings, heads and vectors get AdamW inside the same optimizer: this works on `parameter_groups(model)` as is.

The scale says what a learning rate means; numbers are comparable within one scale only:

    kimi      0.2 sqrt(max(m, n))     update of RMS about 0.2, as AdamW's: one learning rate and decay serve both
    kj        sqrt(max(1, m / n))     the first implementation; learning rates near 0.02
    spectral  sqrt(m / n)             steepest descent under the RMS-to-RMS norm
    none      1

Sources: "Muon: An optimizer for hidden layers in neural networks" (Jordan and others, 2024, blog post); kimi:
"Muon is Scalable for LLM Training" (2025, arXiv:2502.16982). Where we deviate: kimi's scale is the default, and
AdamW's eps is 1e-8 like that of our AdamW (theirs 1e-10), so that the two arms differ in the matrices alone.
A fused query-key-value weight is treated as one matrix.
"""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.methods.optimizers.adamw_update import adamw_update
from thalweg.methods.optimizers.base import Base, Group
from thalweg.methods.optimizers.muon_update import muon_update


class Muon(Base):
    """Muon for groups of kind "matrix", AdamW for the others.

    Given plain parameters, or groups without "kind", those with two and more dimensions count as matrices and the
    others as vectors. Embeddings and output heads have two dimensions too but do not want Muon: pass them in a group
    with kind="embedding" or "head", or take the groups from `parameter_groups(model)`.

    Three dimensions are a stack of matrices (experts), four and more a filter [out, rest].

    Args:
        params: parameters or groups.
        lr: learning rate for both parts.
        weight_decay: decoupled, multiplied by the learning rate.
        momentum: memory of the gradient, beta above.
        nesterov: look ahead by one step of momentum.
        ns_steps: Newton-Schulz iterations.
        scale: kimi, kj, spectral or none, see above.
        dtype: number format of the iteration: auto, bfloat16 or float32.
        beta1: AdamW part, memory of the first moment.
        beta2: AdamW part, memory of the second moment.
        eps: AdamW part, added to the root of the second moment.

    Raises:
        RecipeError: an option out of range, or a matrix group with a vector in it.
    """

    card = "muon"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        scale: str = "kimi",
        dtype: str = "auto",
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            scale=scale,
            dtype=dtype,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
        )

    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """Muon for the hidden matrices, AdamW for the others."""
        matrices, others = self.split(group, parameters)
        if matrices:
            muon_update(self, group, matrices)
        adamw_update(self, group, others)
