"""Independent weight decay: how much of a weight decays in a step does not hang on the peak rate.

    w <- w - s_t (eta Delta + lambda w)          lambda = 1e-4

eta is the peak rate, s_t the schedule's share of it, Delta the optimizer's direction. Common implementations write
s_t eta (Delta + lambda w), where a change of the rate changes the decay with it. Optimizers that decay by lr times
weight_decay, as all decoupled ones do, get exactly this with weight_decay = lambda / eta, and that is what is set here:
the optimizer goes on doing its own decay, in its own precision, over however many ranks.

Source: "Decoupled Weight Decay Regularization" (Loshchilov and Hutter, 2017, arXiv:1711.05101), whose own form this is;
that it lowers the sensitivity to the rate: "Small-scale proxies for large-scale Transformer training instabilities"
(2023, arXiv:2309.14322). In optimizers where decay is no such product (part of the gradient, or inside a trust ratio)
the rate still acts on it.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from thalweg.errors import RecipeError
from thalweg.models.parameter_groups import DECAYED, KINDS

UNDECAYED = tuple(kind for kind in KINDS if kind not in DECAYED)


def independent_weight_decay(optimizer: torch.optim.Optimizer, peak_lr: float, decay: float = 1e-4) -> None:
    """Set the weight decay of every group so that at the peak rate a step takes the share `decay` of each weight.

    Args:
        optimizer: one that decays by lr * weight_decay. Groups of `parameter_groups` that are not decayed (embeddings
            and vectors) stay so; groups without a kind are decayed.
        peak_lr: the largest rate that the schedule gives; a group's `lr_scale` is taken into account.
        decay: lambda.

    Raises:
        RecipeError: a rate or decay that is not a number above (at) 0, or a group without weight decay.
    """
    if not (math.isfinite(decay) and decay >= 0.0 and math.isfinite(peak_lr) and peak_lr > 0.0):
        raise RecipeError(f"decay = {decay} and peak_lr = {peak_lr} are no decay", where="independent_weight_decay")
    for group in optimizer.param_groups:
        if group.get("kind") in UNDECAYED:
            continue
        if "weight_decay" not in group:
            raise RecipeError(f"{type(optimizer).__name__} has no weight decay", where="independent_weight_decay")
        group["weight_decay"] = decay / (peak_lr * group.get("lr_scale", 1.0))


class IndependentWeightDecay:
    """A callback that sets an optimizer's decay by `independent_weight_decay`, in place of training.weight_decay.

    Args:
        decay: share of a weight that decays in a step at the peak rate.
    """

    def __init__(self, decay: float = 1e-4) -> None:
        if not (math.isfinite(decay) and decay >= 0.0):
            raise RecipeError(f"decay = {decay} is not a number at or above 0", where="independent_weight_decay")
        self.decay = decay

    def setup(self, trainer: Any) -> None:
        """Set the groups; a run that goes on from another may have another peak rate."""
        independent_weight_decay(trainer.optimizer, trainer.plan["peak_lr"], self.decay)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the groups are the optimizer's."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""
