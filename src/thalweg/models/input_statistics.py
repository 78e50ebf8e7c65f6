"""Running statistics of a layer's inputs: what they take does not grow with the number of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

OUTPUTS_SEEN = 64  # tokens of each batch, at least
STRIP = 128  # columns of a matrix of second moments that are added to at once


class Observer(Protocol):
    def see(self, inputs: Tensor) -> None:
        """Take in the inputs [tokens, in] of a linear layer, float32."""


@dataclass
class Mean(ABC):
    """The mean of something about the inputs over all tokens, kept as a sum."""

    total: Tensor | None = None
    tokens: int = 0

    @abstractmethod
    def add(self, total: Tensor | None, inputs: Tensor) -> Tensor:
        """The sum with these inputs in it; a sum that is given may be changed in place."""

    def see(self, inputs: Tensor) -> None:
        self.total = self.add(self.total, inputs)
        self.tokens += len(inputs)

    @property
    def value(self) -> Tensor:
        assert self.total is not None, "no inputs were seen"
        return self.total / self.tokens


class SecondMoment(Mean):
    """mean(x_j^2) of every input: [in] float32."""

    def add(self, total: Tensor | None, inputs: Tensor) -> Tensor:
        found = inputs.square().sum(0)
        return found if total is None else total + found


class AbsoluteMean(Mean):
    """mean(|x_j|) of every input: [in] float32."""

    def add(self, total: Tensor | None, inputs: Tensor) -> Tensor:
        found = inputs.abs().sum(0)
        return found if total is None else total + found


class Hessian(Mean):
    """mean(x x^T): [in, in] float32. The sum is kept on and above the diagonal only."""

    def add(self, total: Tensor | None, inputs: Tensor) -> Tensor:
        if total is None:
            total = inputs.new_zeros(inputs.shape[1], inputs.shape[1])
        # What lies left of a strip's diagonal block is known from the strips above: nearly half of the products.
        for start in range(0, len(total), STRIP):
            stop = start + STRIP
            total[start:stop, start:].addmm_(inputs[:, start:stop].mT, inputs[:, start:])
        return total

    @property
    def value(self) -> Tensor:
        whole = super().value
        for start in range(0, len(whole), STRIP):
            stop = start + STRIP
            whole[stop:, start:stop] = whole[start:stop, stop:].mT
        return whole


@dataclass
class OutputError:
    """|x W'^T - x W^T|^2 over |x W^T|^2, summed over tokens.

    Of many tokens at once, some at even distances are looked at, `at_most` to twice as many: it is a report, and two
    products of matrices for every token would cost as much as the walk itself. None looks at all of them.
    """

    before: Tensor
    after: Tensor
    at_most: int | None = None
    lost: float = 0.0
    whole: float = 0.0

    def see(self, inputs: Tensor) -> None:
        # Odd, so that no length of windows that is even makes it meet the same places of each.
        inputs = inputs if self.at_most is None else inputs[:: max(1, len(inputs) // self.at_most) | 1]
        # The change is made anew each time: one for every layer of a block would be held in float32 otherwise.
        self.lost += float((inputs @ (self.after.float() - self.before.float()).mT).square().sum(dtype=torch.float64))
        self.whole += float((inputs @ self.before.float().mT).square().sum(dtype=torch.float64))
