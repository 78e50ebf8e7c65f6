"""Hypergradient descent on the learning rate: raise it while consecutive steps agree, lower it when they do not.

The derivative of the loss with respect to the rate of the step before is minus the product of the gradient that step
led to with the direction that it took, theta_t = theta_{t-1} - alpha_{t-1} u_{t-1}:

    h_t     = g_t . u_{t-1}                                          summed over all parameters
    additive:   alpha_t = alpha_{t-1} + beta h_t                     beta in learning rate per unit of h
    normalised: alpha_t = alpha_{t-1} (1 + beta cos(g_t, u_{t-1}))   beta without a unit
    alpha_t <- clip(alpha_t, low, high), in units of the peak        then theta_{t+1} = theta_t - alpha_t u_t

u is read off the weights, u_{t-1} = (theta_{t-1} - theta_t) / alpha_{t-1}, so the same file serves SGD, Adam, Muon and
whatever else takes a learning rate, and nothing need be known of its state. Adaptation begins after the warm-up.

In a loop of your own, between backward and the optimizer's step:

    if clock.progress >= schedule.warmup:
        schedule.observe(schedule.measure(optimizer))
    for group in optimizer.param_groups:
        group["lr"] = peak * schedule.factor(clock)

`scheduler` works too, one step late: a torch scheduler sets the rate of the step after.

Source: "Online Learning Rate Adaptation with Hypergradient Descent" (2018, arXiv:1703.04782), additive; the normalised
rule is of the literature that followed, and the default, since its beta carries over between models. Where we differ: g
is the gradient of the loss before clipping; one product over all parameters comes first and one change of the rate
after (the released AdamHD changes the rate tensor by tensor); weight decay that the optimizer applies by itself is part
of u, which makes h the derivative exactly; and the rate stays above 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.errors import RecipeError
from thalweg.methods.schedules.base import Schedule
from thalweg.numerics.curvature import norm

RULES = ("normalised", "additive")


def agreement(gradients: list[Tensor], displacements: list[Tensor]) -> tuple[float, float, float]:
    """(g . d, ||g||, ||d||), each over all parameters together, in one transfer to the host."""
    flat = [(g.flatten(), d.flatten()) for g, d in zip(gradients, displacements, strict=True)]
    product = torch.stack([torch.dot(g, d) for g, d in flat]).sum()
    found = torch.stack([product, norm(gradients), norm(displacements)]).tolist()
    return found[0], found[1], found[2]


class Hypergradient(Schedule):
    """A closed loop: `measure` before each step, `observe` what was measured, then ask for the factor.

    Args:
        warmup: share of the budget spent warming up; the rate is not adapted in it.
        rule: normalised or additive.
        beta: the rate of the rate.
        low, high: bounds of the factor, in units of the peak; 1 is between them.

    Raises:
        RecipeError: an option out of range.
    """

    def __init__(
        self,
        warmup: float = 0.05,
        rule: str = "normalised",
        beta: float = 0.02,
        low: float = 0.001,
        high: float = 1000.0,
    ) -> None:
        super().__init__(warmup)
        self.rule = self._known("rule", rule, RULES)
        self.beta, self.low, self.high = float(beta), float(low), float(high)
        if not 0.0 <= self.beta < math.inf:
            raise RecipeError(f"beta = {beta} is not a number of at least 0", where=self._where, fix="Try beta=0.02.")
        if not 0.0 < self.low <= 1.0 <= self.high < math.inf:
            raise RecipeError(
                f"low = {low}, high = {high} do not enclose 1", where=self._where, fix="low > 0, high >= 1."
            )
        self.rate = 1.0
        self._before: list[Tensor] | None = None

    def shape(self, progress: float) -> float:
        """The rate as adapted so far."""
        return self.rate

    @torch.no_grad()
    def measure(self, optimizer: Optimizer) -> dict[str, float]:
        """What the last step's direction and the gradient now in `.grad` say of the rate; remembers the weights.

        Returns:
            "cosine" of the two, and "hypergradient": h / alpha, the relative change of the rate for a beta of 1.
            Nothing at the first step. The last step's rate is what the groups still hold.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if self._before is None:
            self._before = [p.detach().clone() for p in parameters]
            return {}
        self._before = [old.to(p.device) for old, p in zip(self._before, parameters, strict=True)]
        # In place, so that a step allocates nothing: the weights before become the way gone, then the weights now.
        torch._foreach_sub_(self._before, parameters)
        pairs = [(p.grad, way) for p, way in zip(parameters, self._before, strict=True) if p.grad is not None]
        product, slope, length = agreement([g for g, _ in pairs], [d for _, d in pairs]) if pairs else (0.0, 0.0, 0.0)
        torch._foreach_copy_(self._before, parameters)
        alpha = optimizer.param_groups[0]["lr"] / optimizer.param_groups[0].get("lr_scale", 1.0)
        if not (slope * length > 0.0 and alpha > 0.0):
            return {}
        return {"cosine": product / (slope * length), "hypergradient": product / alpha**2}

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Change the rate by what `measure` gave; what is missing or not finite changes nothing."""
        said = metrics.get("cosine" if self.rule == "normalised" else "hypergradient", 0.0)
        if math.isfinite(said):
            self.rate = min(max(self.rate * (1.0 + self.beta * said), self.low), self.high)

    # -- hooks of the trainer -------------------------------------------------------------------------------------

    def setup(self, trainer: Any) -> None:
        """Yesterday's weights go into checkpoints, and those of sharded runs hold no tensors of schedules."""
        self._refuse_shards(trainer)

    def raw_gradients(self, trainer: Any, batch: Any) -> None:
        """Between backward and the step: adapt the rate that this step will take."""
        if trainer.clock.progress < self.warmup:
            return
        found = self.measure(trainer.optimizer)
        self.observe(found)
        trainer.metrics |= {"update_cosine": found["cosine"]} if found else {}

    def state_dict(self) -> dict[str, Any]:
        """The rate, and the weights before the last step."""
        return {"rate": self.rate, **({} if self._before is None else {"before": [p.clone() for p in self._before]})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.rate = float(state["rate"])
        before = state.get("before")
        self._before = None if before is None else [tensor.clone() for tensor in before]
