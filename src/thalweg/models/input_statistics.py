"""Running statistics of a layer's inputs: what they take does not grow with the number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Observer(Protocol):
    def see(self, inputs: Tensor) -> None:
        """Take in the inputs [tokens, in] of a linear layer, float32."""


@dataclass
class SecondMoment:
    """mean(x_j^2) of every input: [in] float32."""

    total: Tensor | None = None
    tokens: int = 0

    def see(self, inputs: Tensor) -> None:
        found = inputs.square().sum(0)
        self.total = found if self.total is None else self.total + found
        self.tokens += len(inputs)

    @property
    def value(self) -> Tensor:
        assert self.total is not None, "no inputs were seen"
        return self.total / self.tokens


@dataclass
class AbsoluteMean:
    """mean(|x_j|) of every input: [in] float32."""

    total: Tensor | None = None
    tokens: int = 0

    def see(self, inputs: Tensor) -> None:
        found = inputs.abs().sum(0)
        self.total = found if self.total is None else self.total + found
        self.tokens += len(inputs)

    @property
    def value(self) -> Tensor:
        assert self.total is not None, "no inputs were seen"
        return self.total / self.tokens


@dataclass
class Hessian:
    """mean(x x^T): [in, in] float32."""

    total: Tensor | None = None
    tokens: int = 0

    def see(self, inputs: Tensor) -> None:
        if self.total is None:
            self.total = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
        self.total.addmm_(inputs.mT, inputs)
        self.tokens += len(inputs)

    @property
    def value(self) -> Tensor:
        assert self.total is not None, "no inputs were seen"
        return self.total / self.tokens


@dataclass
class OutputError:
    """|x W'^T - x W^T|^2 over |x W^T|^2, summed over tokens."""

    before: Tensor
    after: Tensor
    lost: float = 0.0
    whole: float = 0.0

    def see(self, inputs: Tensor) -> None:
        self.lost += float((inputs @ (self.after.float() - self.before.float()).mT).square().sum(dtype=torch.float64))
        self.whole += float((inputs @ self.before.float().mT).square().sum(dtype=torch.float64))
