"""AdamW: Adam with weight decay that does not pass through the moments.

    m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
    w = w (1 - lr wd) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

The arithmetic is torch's, in its fused form, with the defaults of language-model training: beta2 0.95, decay 0.1.
Betas are two plain numbers, so that a recipe can spell them: `adamw:beta2=0.99`.
Source: "Decoupled Weight Decay Regularization" (Loshchilov and Hutter, 2017, arXiv:1711.05101).
"""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.methods.optimizers.adamw_update import adamw_update
from thalweg.methods.optimizers.base import Base, Group


class AdamW(Base):
    """Torch's fused AdamW with our defaults; narrow parameters get a float32 master (see `base`).

    Args:
        params: parameters or groups; groups of `parameter_groups` carry their own weight decay.
        lr: peak learning rate.
        weight_decay: decoupled, multiplied by the learning rate.
        beta1: memory of the first moment.
        beta2: memory of the second moment.
        eps: added to the root of the second moment.

    Raises:
        RecipeError: an option out of range.
    """

    card = "adamw"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        *,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr, weight_decay, beta1=beta1, beta2=beta2, eps=eps)

    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """Torch's kernel over the group."""
        adamw_update(self, group, parameters)
