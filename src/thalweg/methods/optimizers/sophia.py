"""Sophia: momentum over a running estimate of the diagonal curvature, clipped to 1 coordinate by coordinate.

    m = beta1 m + (1 - beta1) g
    every k steps, from the first on:  h = beta2 h + (1 - beta2) h_hat        (`diagonal_curvature`)
    w = w (1 - lr wd) - lr clip(m / max(gamma h, eps), -1, 1)

Where curvature is zero, negative or unknown the step is lr sign(m); no coordinate moves by more than lr (and decay).
gamma decides how many coordinates are clipped: a tenth to a half of them should not be (`win_rate` in the metrics).

estimator=gnb needs cross-entropy over classes and one extra gradient with sampled labels; estimator=hutchinson takes
any loss and one extra gradient (in Thalweg's trainer, by differences) or a pass through the gradient's graph.

In Thalweg's trainer the estimate refreshes itself, on the batch of the step: `raw_gradients` below. In a loop of your
own call, every k steps and before `step`, `update_hessian` with the gradients of sampled labels in place, or
`update_hessian_from` with a loss; without them h stays 0, and this is momentum with signs.

Source: "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training" (2023,
arXiv:2305.14342), Algorithm 3 in its later form. Where we deviate from the paper: the batch of the estimate is that of
the step, not a smaller one. From the authors' code for estimator=gnb: theirs keeps g * g without the factor B and puts
B beside gamma, clips the sampled gradient to norm 1, adds eps = 1e-15 to gamma h, refreshes h after the steps 10, 20,
30, ... (ours before the steps 1, 11, 21, ...) and so takes ten steps by signs alone. An estimate that is not finite is
left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.methods.optimizers.base import Base, Group, working_dtype
from thalweg.methods.optimizers.diagonal_curvature import IGNORED, SampledCrossEntropy, draws, probe
from thalweg.methods.optimizers.in_cache import pieces
from thalweg.methods.optimizers.sharding import local
from thalweg.numerics.curvature import finite_difference_product, hessian_vector_product, norm

# How far apart the two gradients of a difference are taken, as a share of the norm of the weights. On a model of 0.4M
# parameters the product then differs from the exact one by less than 0.5% in norm in float32. In bfloat16, whose
# rounding asks for a longer way, it is 20%; the spread of the estimate itself is 45 times its mean.
DISTANCE = {"float32": 3e-4, "bfloat16": 2e-2}
# Steps without a refresh, in units of `every`, after which the user is told.
PATIENCE = 3


class Sophia(Base):
    """Clipped steps in units of the curvature; two numbers of state a parameter.

    Args:
        params: parameters or groups.
        lr: learning rate, the largest step of a coordinate.
        weight_decay: decoupled, multiplied by the learning rate; about twice AdamW's.
        beta1: memory of the gradient.
        beta2: memory of the curvature, a refresh.
        gamma: factor on the curvature; the larger, the fewer coordinates are clipped.
        eps: least denominator.
        every: k, steps from one refresh to the next.
        estimator: gnb (Gauss-Newton-Bartlett) or hutchinson.

    Raises:
        RecipeError: an option out of range.
    """

    card = "sophia"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.2,
        *,
        beta1: float = 0.965,
        beta2: float = 0.99,
        gamma: float = 0.05,
        eps: float = 1e-12,
        every: int = 10,
        estimator: str = "gnb",
    ) -> None:
        options: dict[str, Any] = {"beta1": beta1, "beta2": beta2, "gamma": gamma, "eps": eps}
        super().__init__(params, lr, weight_decay, **options, every=every, estimator=estimator)
        self._steps_since_refresh = 0

    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """The clipped step; the curvature is as it was last refreshed."""
        if not parameters:
            return
        self._count(group)
        momenta, curvatures = self.buffers(parameters, "momentum_buffer"), self.buffers(parameters, "hessian")
        for _, some in pieces(self.weights(parameters), self.grads(parameters), momenta, curvatures):
            _clipped_step(group, *some)

    # -- the estimate, in loops of one's own -----------------------------------------------------------------------

    @torch.no_grad()
    def update_hessian(self, positions: float = 1.0) -> None:
        """Refresh from gradients (`parameter.grad`) of the mean cross-entropy with sampled labels.

        Args:
            positions: B, the label positions that the mean was taken over; under DDP those of all ranks.
        """
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [local(parameter.grad).to(working_dtype(parameter)) for parameter in parameters]
            if parameters:
                squares = torch._foreach_mul(torch._foreach_mul(gradients, gradients), float(positions))
                self._average(group, parameters, list(squares))
        self._steps_since_refresh = 0

    def update_hessian_from(self, loss: Callable[[], Tensor], seed: int = 0, step: int = 0) -> None:
        """Refresh from the Hessian of `loss()` and a normal vector that is a function of seed and step.

        The loss is differentiated twice, which fused attention kernels cannot: build the model with eager attention.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        vector = probe(parameters, seed, step)
        self._take_product(parameters, vector, hessian_vector_product(loss, parameters, vector))

    @torch.no_grad()
    def _take_product(self, parameters: Sequence[Tensor], vector: Sequence[Tensor], product: Sequence[Tensor]) -> None:
        estimates = {id(p): u * v for p, u, v in zip(parameters, vector, product, strict=True)}
        for group in self.param_groups:
            own = [parameter for parameter in group["params"] if id(parameter) in estimates]
            if own:
                self._average(group, own, [local(estimates[id(p)]).to(working_dtype(p)) for p in own])
        self._steps_since_refresh = 0

    def _average(self, group: Group, parameters: list[Tensor], estimates: list[Tensor]) -> None:
        curvatures = self.buffers(parameters, "hessian")
        for curvature, estimate in zip(curvatures, estimates, strict=True):
            curvature.lerp_(torch.where(estimate.isfinite(), estimate, curvature), 1.0 - group["betas"][1])

    def _count(self, group: Group) -> None:
        """Say it once when nobody refreshes the curvature: the method would silently be another one."""
        if group is not self.param_groups[0]:
            return
        self._steps_since_refresh += 1
        if self._steps_since_refresh == PATIENCE * group["every"] + 1:
            warnings.warn(
                f"Sophia has taken {self._steps_since_refresh - 1} steps without an estimate of the curvature; without "
                "one it is momentum with signs. Call update_hessian or update_hessian_from every few steps.",
                stacklevel=2,
            )

    # -- the estimate, in Thalweg's trainer ------------------------------------------------------------------------

    def setup(self, trainer: Any) -> None:
        """A refresh is one more gradient every k steps."""
        trainer.step_flops *= 1.0 + 1.0 / self.defaults["every"]

    def raw_gradients(self, trainer: Any, batch: dict[str, Tensor]) -> None:
        """Refresh on the batch of this step; leaves weights and gradients as they were."""
        if trainer.clock.step % self.defaults["every"]:
            return
        parameters = [parameter for parameter in trainer.parameters if parameter.grad is not None]
        # Copies: DDP's gradients are views of its buckets, which the next backward pass fills again.
        slopes = [parameter.grad.clone() for parameter in parameters]
        refresh = self._sampled if self.defaults["estimator"] == "gnb" else self._probed
        refresh(trainer, batch, parameters, slopes)
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope

    def after_step(self, trainer: Any) -> None:
        """Add `win_rate`, the share of coordinates that the last step did not clip, when the curvature is fresh."""
        if (trainer.clock.step - 1) % self.defaults["every"] == 0:
            free, count = self.unclipped()
            means = trainer.parallel.mean(torch.stack([free, torch.full_like(free, count)]))
            trainer.metrics["win_rate"] = float(means[0] / means[1])

    @torch.no_grad()
    def unclipped(self) -> tuple[Tensor, int]:
        """(coordinates that the last step did not clip, all coordinates), of this rank's shards."""
        found, count = [], 0
        for group in self.param_groups:
            parameters = [p for p in group["params"] if "momentum_buffer" in self.state[p]]
            momenta, curvatures = self.buffers(parameters, "momentum_buffer"), self.buffers(parameters, "hessian")
            for momentum, curvature in zip(momenta, curvatures, strict=True):
                bound = (curvature * group["gamma"]).clamp_min_(group["eps"])
                found.append((momentum.abs() < bound).sum(dtype=torch.float32))
                count += momentum.numel()
        return torch.stack(found).sum(), count

    def _sampled(self, trainer: Any, batch: dict[str, Tensor], parameters: list[Tensor], slopes: list[Tensor]) -> None:
        """Gauss-Newton-Bartlett: the batch once more, micro-batch by micro-batch, with labels of the model's own."""
        targets, parallel, micro = batch["targets"], trainer.parallel, trainer.plan["micro_batch"]
        shape = (len(targets) * trainer.world_size, *targets.shape[1:])
        whole = draws(shape, trainer.seed, trainer.clock.step, targets.device)
        own = whole[trainer.rank * len(targets) : (trainer.rank + 1) * len(targets)]
        own = torch.where(targets == IGNORED, IGNORED, own)
        # Ranks average their gradients: with W ranks and B positions this makes sqrt(B) times that of the mean loss.
        scale = (trainer.world_size / parallel.mean((own >= 0).sum().float()).clamp(min=1.0)).sqrt()
        self.zero_grad(set_to_none=True)
        objective, trainer.objective = trainer.objective, SampledCrossEntropy()
        try:
            starts = range(0, len(targets), micro)
            for start in starts:
                part = {"input_ids": batch["input_ids"][start : start + micro], "targets": own[start : start + micro]}
                with parallel.accumulate(trainer.module, last=start == starts[-1]):
                    (trainer.losses(part).sum() * scale).backward()
        finally:
            trainer.objective = objective
        self.update_hessian()

    def _probed(self, trainer: Any, batch: dict[str, Tensor], parameters: list[Tensor], slopes: list[Tensor]) -> None:
        """Hutchinson: the gradient of the same loss a little further along a random vector."""

        def again() -> list[Tensor]:
            self.zero_grad(set_to_none=True)
            with torch.enable_grad():
                trainer.backward(batch)
            return [parameter.grad for parameter in parameters if parameter.grad is not None]

        vector = probe(parameters, trainer.seed, trainer.clock.step)
        distance = DISTANCE[trainer.plan["precision"]] * float(norm(parameters))
        product = finite_difference_product(again, parameters, vector, here=slopes, distance=distance)
        self._take_product(parameters, vector, product)


def _clipped_step(
    group: Group, weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], curvatures: list[Tensor]
) -> None:
    torch._foreach_lerp_(momenta, gradients, 1.0 - group["betas"][0])
    # gamma times the clipped step, which saves a pass: clip(m / max(h, eps / gamma), gamma).
    gamma = group["gamma"]
    steps = list(torch._foreach_clamp_min(curvatures, group["eps"] / gamma))
    torch._foreach_reciprocal_(steps)
    torch._foreach_mul_(steps, momenta)
    torch._foreach_clamp_min_(steps, -gamma)
    torch._foreach_clamp_max_(steps, gamma)
    if group["weight_decay"]:
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(weights, steps, alpha=-group["lr"] / gamma)
