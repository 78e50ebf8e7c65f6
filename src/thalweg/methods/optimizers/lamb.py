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

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.methods.optimizers.adamw_update import adamw_update
from thalweg.methods.optimizers.base import Base, Group
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
        if layers:
            self._layer_step(group, layers)
        vectors = [parameter for parameter in parameters if parameter.ndim < 2]
        adamw_update(self, {**group, "weight_decay": 0.0}, vectors)

    def _layer_step(self, group: Group, layers: list[Tensor]) -> None:
        weights = self.weights(layers)
        updates = self._adam_directions(group, layers)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        local = ratios(norms(weights, layers), norms(updates, layers)).unbind()
        torch._foreach_addcmul_(weights, updates, local, value=-group["lr"])

    def _adam_directions(self, group: Group, layers: list[Tensor]) -> list[Tensor]:
        """r above, in new tensors."""
        beta1, beta2 = group["betas"]
        gradients = self.grads(layers)
        first, second = self.buffers(layers, "exp_avg"), self.buffers(layers, "exp_avg_sq")
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1.0 - beta2)
        steps = self._counted(layers)
        correction, root = _missing(beta1, steps), _missing(beta2, steps).sqrt()
        # r = (root / correction) m / (sqrt(v) + eps root): the corrections are numbers of a layer, not of an element.
        directions = list(torch._foreach_sqrt(second))
        torch._foreach_add_(directions, (group["eps"] * root).unbind())
        torch._foreach_reciprocal_(directions)
        torch._foreach_mul_(directions, first)
        torch._foreach_mul_(directions, (root / correction).unbind())
        return directions

    def _counted(self, layers: list[Tensor]) -> Tensor:
        """Steps of each layer, this one included, [n]; on the device, since a step must not wait for it."""
        for layer in layers:
            if "step" not in self.state[layer]:
                self.state[layer]["step"] = torch.zeros((), dtype=torch.float32, device=layer.device)
        counters = [self.state[layer]["step"] for layer in layers]
        torch._foreach_add_(counters, 1.0)
        return torch.stack(counters)


def _missing(beta: float, steps: Tensor) -> Tensor:
    """1 - beta^steps; the plain difference would lose digits for a beta near 1 in the first steps."""
    return -torch.expm1(steps * (math.log(beta) if beta > 0.0 else -math.inf))
