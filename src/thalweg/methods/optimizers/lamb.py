"""LAMB: Adam whose step is rescaled, layer by layer, to a fixed share of the norm of the layer's weights.

    m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
    r = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
    u = r + wd w                                          the decay is inside what is normalised
    w = w - lr ||w|| / ||u|| u                            ratio 1 if either norm is 0

so a layer moves by lr ||w|| in every step, whatever its gradient. A layer is one tensor with two or more dimensions
(`trust_ratio`). Biases and gains of norms take Adam's step: no ratio, no decay, whatever their group says.

Source: "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes" (You and others, 2019,
arXiv:1904.00962). As in the official code (TensorFlow Addons) the norm of the weights is taken as it is; the paper's
theory allows it to be clipped. Where we deviate: none that changes a number; vectors are known by their dimensions,
where the official code goes by names that the caller lists.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.methods.optimizers.adamw_update import adamw_update
from thalweg.methods.optimizers.base import Base, Group
from thalweg.methods.optimizers.in_cache import batches_of_whole
from thalweg.methods.optimizers.trust_ratio import norms, ratios


class LAMB(Base):
    """Layer-wise adaptive moments; two numbers of state a parameter.

    Args:
        params: parameters or groups.
        lr: the share of its norm by which a layer moves in a step; of vectors Adam's.
        weight_decay: of layers only, in units of Adam's direction.
        beta1: memory of the first moment.
        beta2: memory of the second moment.
        eps: added to the root of the second moment.

    Raises:
        RecipeError: an option out of range.
    """

    card = "lamb"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(params, lr, weight_decay, beta1=beta1, beta2=beta2, eps=eps)

    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """Layers with their ratios, vectors as Adam."""
        layers = [parameter for parameter in parameters if parameter.ndim >= 2]
        for some in batches_of_whole(layers):
            self._layer_step(group, some)
        vectors = [parameter for parameter in parameters if parameter.ndim < 2]
        adamw_update(self, {**group, "weight_decay": 0.0}, vectors)

    def _layer_step(self, group: Group, layers: list[Tensor]) -> None:
        weights = self.weights(layers)
        # -r: where a step of Adam with rate 1 takes zeros.
        updates = [torch.zeros_like(weight) for weight in weights]
        adamw_update(self, {**group, "lr": 1.0, "weight_decay": 0.0}, layers, updates)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=-group["weight_decay"])
        local = ratios(norms(weights, layers), norms(updates, layers)).unbind()
        torch._foreach_addcmul_(weights, updates, local, value=group["lr"])
