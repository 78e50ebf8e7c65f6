"""Hyperparameters that are tuned by gradients: unconstrained numbers, squashed into their ranges, and perturbed.

    lambda = low + (high - low) sigmoid(h)        in an interval
    lambda = low + softplus(h)                    without an upper end
    h_b = h + sigma e_b,  e_b ~ N(0, I)           for the example b;  sigma = softplus(s)
    (h, s) <- Adam on F - tau H(sigma),           H(sigma) = sum log(sigma sqrt(2 pi e))

The draws are a function of (seed, step): a resumed run and every rank have the same. All numbers are on the CPU, since
they are few, and what they make (rates, a decay) is asked for there.

Source: "Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions" (2019,
arXiv:1903.03088) and its released code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def squash(h: Tensor, low: float, high: float) -> Tensor:
    """An unconstrained number into (low, high): a stretched sigmoid, or softplus where high is infinite."""
    return low + functional.softplus(h) if math.isinf(high) else low + (high - low) * torch.sigmoid(h)


def unsquash(value: float, low: float, high: float) -> float:
    """The inverse of `squash`."""
    if math.isinf(high):
        return (value - low) + math.log(-math.expm1(-(value - low)))
    share = (value - low) / (high - low)
    return math.log(share) - math.log1p(-share)


def entropy(s: Tensor) -> Tensor:
    """Of normal distributions with standard deviations softplus(s), in nats, all together."""
    return torch.log(functional.softplus(s) * math.sqrt(2.0 * math.pi * math.e)).sum()


def seed_of(*numbers: int) -> int:
    """One seed of 63 bits from several numbers, so that neighbours have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Hyperparameters:
    """A few numbers, h and s [n], and Adam's memory of them.

    Args:
        ranges: (low, high) by name.
        shared: names that cannot differ within a batch: its examples have one draw.
        rate: Adam's learning rate.
        perturbation: sigma to begin with.
        tau: weight of the entropy; 0 leaves sigma as it is.
    """

    def __init__(
        self,
        ranges: Mapping[str, tuple[float, float]],
        shared: tuple[str, ...] = (),
        rate: float = 0.01,
        perturbation: float = 0.5,
        tau: float = 0.0,
    ) -> None:
        self.ranges, self.shared, self.tau = dict(ranges), shared, tau
        self.h = torch.zeros(len(self.ranges))
        self.s = torch.full((len(self.ranges),), unsquash(perturbation, 0.0, math.inf))
        self._tuned = [self.h, self.s] if tau else [self.h]
        self._adam = torch.optim.Adam(self._tuned, lr=rate) if self.ranges else None

    def __contains__(self, name: str) -> bool:
        return name in self.ranges

    def __len__(self) -> int:
        return len(self.ranges)

    def begin_at(self, values: Mapping[str, float]) -> None:
        """Set h by the values that the hyperparameters have at first."""
        for place, (name, ends) in enumerate(self.ranges.items()):
            self.h[place] = unsquash(values[name], *ends)

    def draws(self, seed: int, step: int, rows: int) -> Tensor:
        """e of the examples of a step, [rows, n]."""
        drawn = np.random.default_rng([seed, step]).standard_normal((rows, len(self)), np.float32)
        for place, name in enumerate(self.ranges):
            if name in self.shared:
                drawn[:, place] = drawn[0, place]
        return torch.from_numpy(drawn)

    def perturbations(self, draws: Tensor) -> Tensor:
        """h_b - h: [rows, n] -> [rows, n]."""
        return functional.softplus(self.s) * draws

    def at(self, name: str, perturbations: Tensor) -> Tensor:
        """A hyperparameter at h + perturbations: [..., n] -> [...]."""
        place = list(self.ranges).index(name)
        return squash(self.h[place] + perturbations[..., place], *self.ranges[name])

    def values(self) -> dict[str, float]:
        """What they are at h."""
        still = torch.zeros(len(self))
        return {name: float(self.at(name, still)) for name in self.ranges}

    @torch.no_grad()
    def step(self, slope: Tensor, slope_of_scales: Tensor) -> Tensor:
        """One step of Adam.

        Args:
            slope: of F by h, [n]. slope_of_scales: of F by sigma, [n].

        Returns:
            How far h has moved, [n].
        """
        assert self._adam is not None
        before, self.h.grad = self.h.clone(), slope
        if self.tau:
            sigma = functional.softplus(self.s)
            self.s.grad = torch.sigmoid(self.s) * (slope_of_scales - self.tau / sigma)
        self._adam.step()
        return self.h - before

    def state_dict(self) -> dict[str, Any]:
        """h, s and Adam's memory."""
        state = self._adam.state if self._adam is not None else {}
        memory = [{key: value.clone() for key, value in state[tensor].items()} for tensor in self._tuned if state]
        return {"h": self.h.clone(), "s": self.s.clone(), "adam": memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.h.copy_(state["h"])
        self.s.copy_(state["s"])
        for tensor, memory in zip(self._tuned, state["adam"], strict=False):
            assert self._adam is not None
            self._adam.state[tensor] = {key: value.clone() for key, value in memory.items()}
