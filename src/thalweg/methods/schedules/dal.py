"""DAL, drift-adjusted learning: the rate of gradient descent from the size of its own discretisation error.

A step of size h leaves the gradient flow by (h^2 / 2) ||H g|| against a length of h ||g||. Drift-adjusted learning
keeps the ratio of the two at bay: with g the gradient, H the Hessian, both of the same batch,

    curvature = ||H g|| / ||g||                      the curvature felt along the gradient, at most lambda_max
    h         = 2 / curvature^p                      p = 1: the step is scale-free; less p, less dependence
    factor    = min(h / peak_lr, 1) * warm-up

so the peak rate is the cap; the authors' code caps at 5, and `peak_lr` 5 is theirs. Before the first measurement the
factor is that of a constant rate.

What it is not: p = 1 does not settle on a quadratic, it turns the steepest direction round for ever (h lambda_max >= 2
always), and p < 1 with lambda_max > 1 diverges there; on networks the curvature gives way. The analysis is of plain
gradient descent. Adaptive optimizers take rates so much smaller that the cap always holds, and this is a constant rate.

Source: "On a continuous time model of gradient descent dynamics and instability in deep learning" (2023,
arXiv:2302.01952). Each step costs a second gradient on its batch, the difference of two gradients 0.01 apart along g
(theirs, too), and the clock's FLOPs count it. The raw gradient is measured; what clipping then does to it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import RecipeError
from thalweg.methods.schedules.base import ReadableClock, Schedule
from thalweg.numerics.curvature import finite_difference_product, norm


def drift_adjusted_rate(curvature: float, p: float = 1.0) -> float:
    """2 / curvature^p; infinity where nothing curves."""
    return 2.0 / curvature**p if curvature > 0.0 or p == 0.0 else math.inf


class DAL(Schedule):
    """A closed loop: `observe` a curvature, then ask for the factor.

    In Thalweg's trainer it measures by itself. In a loop of your own, between backward and the optimizer's step:

        dal.observe({"curvature": float(norm(product) / norm(gradients))})     # thalweg.numerics.curvature
        group["lr"] = dal.peak_lr * dal.factor(clock)

    `scheduler` works too, one step late: a torch scheduler sets the rate of the step after.

    Args:
        warmup: share of the budget over which the rate is held back, linearly from 0.
        p: how strongly the rate answers to the curvature; 1 is the method, 0.5 a softer one.
        peak_lr: the largest rate. Within Thalweg's trainer it is the run's own; loops without it say it here.

    Raises:
        RecipeError: an option out of range.
    """

    def __init__(self, warmup: float = 0.0, p: float = 1.0, peak_lr: float = 5.0) -> None:
        super().__init__(warmup)
        self.p, self.peak_lr = float(p), float(peak_lr)
        if not 0.0 <= self.p < math.inf:
            raise RecipeError(f"p = {self.p:g} is not a number of at least 0", where="schedule dal", fix="Try p=1.")
        if not 0.0 < self.peak_lr < math.inf:
            raise RecipeError(f"peak_lr = {self.peak_lr:g} is not a number above 0", where="schedule dal")
        self.curvature: float | None = None

    @property
    def rate(self) -> float:
        """h as last measured, in units of the learning rate; infinity before that."""
        return math.inf if self.curvature is None else drift_adjusted_rate(self.curvature, self.p)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take in "curvature", ||H g|| / ||g||. What is not finite, as at a gradient of zero, is passed over."""
        if math.isfinite(metrics["curvature"]):
            self.curvature = float(metrics["curvature"])

    def factor(self, clock: ReadableClock) -> float:
        return super().factor(clock) * min(self.rate / self.peak_lr, 1.0)

    def shape(self, progress: float) -> float:
        """1: what varies is measured."""
        return 1.0

    def setup(self, trainer: Any) -> None:
        """Within the trainer: the cap is the run's peak rate, and a step costs two gradients."""
        if "peak_lr" in trainer.recipe.schedule.options:
            raise RecipeError(
                "dal takes peak_lr from the run",
                where="schedule dal",
                fix="Leave it out here; set training.peak_lr instead.",
            )
        self.peak_lr = trainer.plan["peak_lr"]
        trainer.step_flops *= 2

    def raw_gradients(self, trainer: Any, batch: dict[str, Tensor]) -> None:
        """Measure the curvature along the gradient of this step, and leave gradients and weights as they were."""
        parameters = [parameter for parameter in trainer.parameters if parameter.grad is not None]
        slopes = [parameter.grad.clone() for parameter in parameters]

        def again() -> list[Tensor]:
            trainer.optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                trainer.backward(batch)
            return [parameter.grad for parameter in parameters]

        product = finite_difference_product(again, parameters, slopes, here=slopes)
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope
        self.observe({"curvature": float(norm(product) / norm(slopes))})
        trainer.metrics |= {"curvature": self.curvature}

    def state_dict(self) -> dict[str, Any]:
        """What was measured last."""
        return {"curvature": self.curvature}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curvature = state["curvature"]
