"""Nexus: walk through the micro-batches of a step one after the other, and let the optimizer follow the whole walk.

    theta_0 = theta                                   the weights before the step
    g_k     = grad L_k(theta_{k-1})                   k = 1 .. K, one micro-batch each
    theta_k = theta_{k-1} - gamma g_k / ||g_k||       one norm over all parameters
    G       = (theta_0 - theta_K) / (gamma K)         = the mean of g_k / ||g_k|| along the walk

The weights go back to theta_0 and the optimizer, whichever it is, gets G for its gradient. To first order in gamma, G
is the mean of the normalised gradients at theta_0, less a term that (averaged over the order of the micro-batches)
turns the gradients of the micro-batches towards each other: sources whose gradients agree have minima near each other.

||G|| <= 1, with 1 where all micro-batches agree, so the norm of the gradient that is reported tells how well they do.
gamma = 0 is the control: normalised gradients, all taken at theta_0. With `normalize` off, the steps are gamma g_k and
G = sum_k g_k: first-order meta-learning ("Reptile"), and with gamma 0 the plain optimizer.

As many passes forward and backward as gradient accumulation, one after the other; a copy of the weights and one of
the gradient. Under DDP and FSDP2 all ranks take the same walk, so gradients travel with every micro-batch.

Source: "Nexus: Same Pretraining Loss, Better Downstream Generalization via Common Minima" (Chen, Zhang, Li, Dong, Shen,
Zhu, 2026, arXiv:2604.09258), of which we could read the abstract and the authors' figure, not the body. Our choices
where those say nothing: K, gamma's default (that of an experiment by others with 130M parameters), G divided by
gamma K so that clipping and Adam's eps keep their meaning. The figure's first-order term, -(gamma / 2) times the
gradient of the cosines, is exact for `normalize` off (with inner products for cosines) and approximate else: the
derivative of a normalised gradient is not symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from thalweg import catalog
from thalweg.methods.optimizers.sharding import local
from thalweg.numerics.curvature import norm


class InnerWalk:
    """The walk of one step, for any loop.

    After every micro-batch's backward, `advance()`; after the last one `finish()`, which puts the weights back and
    leaves G in the gradients. Then clip and step as always.

    Args:
        parameters: those that are trained.
        gamma: length of an inner step, in the units of the weights.
        normalize: divide every gradient by its norm.
    """

    def __init__(self, parameters: Iterable[Tensor], gamma: float = 0.05, normalize: bool = True) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.gamma, self.normalize = gamma, normalize
        self._start: list[Tensor] = []
        self._sums: dict[int, Tensor] = {}
        self._steps = 0

    @torch.no_grad()
    def advance(self) -> None:
        """Take the gradient that a micro-batch has left, and one inner step along it."""
        if self._steps == 0 and self.gamma > 0.0:
            self._start = [parameter.detach().clone() for parameter in self.parameters]
        found = [(index, p, p.grad) for index, p in enumerate(self.parameters) if p.grad is not None]
        gradients = [gradient for _, _, gradient in found]
        shards = [local(gradient) for gradient in gradients]
        if self.normalize and shards:
            # A gradient of zero stays zero; one with a NaN in it spoils G, and the trainer leaves the step out.
            torch._foreach_div_(shards, norm(gradients).clamp_min(torch.finfo(torch.float32).tiny))
        if self.gamma > 0.0 and shards:
            weights = [local(parameter) for _, parameter, _ in found]
            steps = [shard.to(weight.dtype) for shard, weight in zip(shards, weights, strict=True)]
            torch._foreach_add_(weights, steps, alpha=-self.gamma)
        again = [position for position, (index, _, _) in enumerate(found) if index in self._sums]
        if again:
            sums = [local(self._sums[found[position][0]]) for position in again]
            torch._foreach_add_(sums, [shards[position] for position in again])
        for index, parameter, gradient in found:
            if index not in self._sums:
                # A copy, since DDP's gradients are views of what the next micro-batch writes to.
                self._sums[index] = gradient.clone()
            parameter.grad = None
        self._steps += 1

    @torch.no_grad()
    def finish(self) -> None:
        """Go back to where the walk began, with G for the gradient."""
        self.go_back()
        for index, total in self._sums.items():
            self.parameters[index].grad = total.div_(self._steps) if self.normalize else total
        self._sums, self._steps = {}, 0

    @torch.no_grad()
    def go_back(self) -> None:
        """Put the weights back, bit for bit."""
        for parameter, start in zip(self.parameters, self._start, strict=bool(self._start)):
            parameter.copy_(start)
        self._start = []


class Nexus:
    """A callback that takes the walk within every step of the trainer, before any optimizer's own.

    Args:
        gamma: length of an inner step, in the units of the weights; 0 only normalises.
        parts: K, the micro-batches of a step; more where memory asks for smaller ones.
        normalize: divide every micro-batch's gradient by its norm.
    """

    def __init__(self, gamma: float = 0.05, parts: int = 4, normalize: bool = True) -> None:
        options: dict[str, Any] = {"gamma": gamma, "parts": parts, "normalize": normalize}
        catalog.lookup("nexus").check(options, where="callback nexus")
        self.gamma, self.parts, self.normalize = gamma, parts, normalize
        self._walk: InnerWalk | None = None

    def setup(self, trainer: Any) -> None:
        """Divide the trainer's batches, and prepare the walk."""
        rows = trainer.plan["batch_size"] // trainer.world_size
        trainer.plan["micro_batch"] = min(trainer.plan["micro_batch"], math.ceil(rows / self.parts))
        self._walk = InnerWalk(trainer.parameters, self.gamma, self.normalize)

    def accumulated(self, trainer: Any, last: bool) -> None:
        """After the backward pass of a micro-batch."""
        assert self._walk is not None
        self._walk.advance()
        if last:
            self._walk.finish()

    def state_dict(self) -> dict[str, Any]:
        """Nothing outlives a step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""
