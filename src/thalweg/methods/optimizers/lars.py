"""LARS: momentum SGD with a learning rate for each layer, proportional to the norm of its weights over its gradient's.

    local = trust ||w|| / (||g|| + wd ||w||)          1 if either norm is 0
    v = momentum v + local (g + wd w)
    w = w - lr v

normalise=momentum is the form that the LAMB paper analyses, where the average is normalised, not what enters it:

    m = momentum m + (1 - momentum) (g + wd w)
    w = w - lr trust ||w|| / ||m|| m

A layer is one tensor with two or more dimensions (`trust_ratio`). Biases and gains of norms take plain momentum steps:
no ratio, no decay, whatever their group says. The decay is L2: it passes through the momentum.

Source: "Large Batch Training of Convolutional Networks" (You, Gitman and Ginsburg, 2017, arXiv:1708.03888); the other
form: "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes" (2019, arXiv:1904.00962), Algorithm 1.

Where we deviate. The paper multiplies by lr inside the momentum (v = momentum v + lr local (g + wd w); w = w - v): a
changed rate then acts with a lag of about momentum / (1 - momentum) steps, and a rate of 0 does not stop. Ours is
torch's convention, in which a rate holds from the step on that it is set; with a constant rate both are the same walk.
`trust` is 1, not 0.001, so that a rate is the share of its norm by which a layer moves in a step, of the size of
LAMB's, and is not in the thousands times that of the vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.methods.optimizers.base import Base, Group
from thalweg.methods.optimizers.in_cache import pieces
from thalweg.methods.optimizers.trust_ratio import norms, ratios


class LARS(Base):
    """Layer-wise adaptive rate scaling; one number of state a parameter.

    Args:
        params: parameters or groups.
        lr: learning rate; of layers in units of their norm (times `trust`), of vectors plain.
        weight_decay: L2, of layers only.
        momentum: memory of the steps.
        trust: share of its norm that a layer moves by at lr 1, without momentum.
        normalise: gradient (the paper) or momentum (the form of the LAMB paper).

    Raises:
        RecipeError: an option out of range.
    """

    card = "lars"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        weight_decay: float = 0.0,
        *,
        momentum: float = 0.9,
        trust: float = 1.0,
        normalise: str = "gradient",
    ) -> None:
        super().__init__(params, lr, weight_decay, momentum=momentum, trust=trust, normalise=normalise)

    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """Layers with their ratios, vectors without."""
        layers = [parameter for parameter in parameters if parameter.ndim >= 2]
        vectors = [parameter for parameter in parameters if parameter.ndim < 2]
        step = self._gradient_step if group["normalise"] == "gradient" else self._momentum_step
        if layers:
            step(group, layers)
        if vectors:
            self._vector_step(group, vectors)

    def _gradient_step(self, group: Group, layers: list[Tensor]) -> None:
        weights, gradients = self.weights(layers), self.grads(layers)
        buffers = self.buffers(layers, "momentum_buffer")
        decay = group["weight_decay"]
        sizes, slopes = norms(weights, layers), norms(gradients, layers)
        # The decay must not make a denominator where there is no gradient.
        local = ratios(group["trust"] * sizes, slopes + decay * sizes * (slopes > 0)).unbind()
        for places, (moved, slope, buffer) in pieces(weights, gradients, buffers):
            rates = [local[place] for place in places]
            torch._foreach_mul_(buffer, group["momentum"])
            torch._foreach_addcmul_(buffer, slope, rates)
            if decay:
                torch._foreach_addcmul_(buffer, moved, rates, value=decay)
            torch._foreach_add_(moved, buffer, alpha=-group["lr"])

    def _momentum_step(self, group: Group, layers: list[Tensor]) -> None:
        weights, buffers = self.weights(layers), self.buffers(layers, "momentum_buffer")
        slopes = self.grads(layers)
        if group["weight_decay"]:
            slopes = list(torch._foreach_add(slopes, weights, alpha=group["weight_decay"]))
        torch._foreach_lerp_(buffers, slopes, 1.0 - group["momentum"])
        local = ratios(group["trust"] * norms(weights, layers), norms(buffers, layers)).unbind()
        torch._foreach_addcmul_(weights, buffers, local, value=-group["lr"])

    def _vector_step(self, group: Group, vectors: list[Tensor]) -> None:
        weights, gradients = self.weights(vectors), self.grads(vectors)
        buffers = self.buffers(vectors, "momentum_buffer")
        torch._foreach_mul_(buffers, group["momentum"])
        entering = 1.0 if group["normalise"] == "gradient" else 1.0 - group["momentum"]
        torch._foreach_add_(buffers, gradients, alpha=entering)
        torch._foreach_add_(weights, buffers, alpha=-group["lr"])
