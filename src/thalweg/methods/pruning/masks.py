"""Masks of the family: the lowest share of scores, and N of every M.

A mask is True where a weight is kept. Counts are exact: floor(sparsity * weights) are pruned, ties go by place.
(Official code compares with the sorted score at that place by "<=", which prunes one more, and ties besides.)

What was pruned before has the lowest score of all, so that it counts towards what is wanted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.errors import ModelError, RecipeError
from thalweg.models.linears import Linear

UNSTRUCTURED = "unstructured"
HALF = 0.5  # the sparsity that methods have as their default
PRUNED = -1.0  # the score of what was pruned before; others are not negative
_INFINITY = 0x7F800000  # the bits of infinity in float32


@dataclass(frozen=True)
class Target:
    """What share is pruned, and where.

    Attributes:
        sparsity: share of the weights that is pruned.
        kept, of: of every `of` consecutive inputs of a row `kept` are kept; 0, 0 without a pattern.
    """

    sparsity: float
    kept: int = 0
    of: int = 0

    def pruned(self, weights: int) -> int:
        """How many of so many."""
        # 0.29 * 100 is 28.999999999999996.
        return math.floor(self.sparsity * weights + 1e-6)

    def check(self, linear: Linear, inside: str) -> None:
        """Raises ModelError where the pattern does not divide the inputs of a layer; `inside` names the block."""
        if self.of and linear.shape[1] % self.of:
            raise ModelError(
                f"{inside}.{linear.name} has {linear.shape[1]} inputs, no multiple of {self.of}.",
                where="compress",
                fix=f"Choose another pattern than {self.kept}:{self.of}.",
            )


def target(sparsity: float, pattern: str, where: str) -> Target:
    """What the options say.

    Args:
        sparsity: share of the weights to prune. A pattern says it by itself; beside one, the default or what the
            pattern comes to is allowed.
        pattern: "unstructured", or "N:M": N of every M are kept.
        where: the method, for the error.

    Raises:
        RecipeError: a pattern of another form, or a sparsity that contradicts it.
    """
    if pattern == UNSTRUCTURED:
        return Target(sparsity)
    found = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", pattern)
    kept, of = (int(number) for number in found.groups()) if found else (0, 0)
    if not 0 < kept < of:
        raise RecipeError(
            f"{pattern!r} is no pattern",
            where=f"{where}:pattern",
            fix=f'Give "{UNSTRUCTURED}", or N:M with 0 < N < M, such as 2:4: of every 4 inputs in a row 2 are kept.',
        )
    if sparsity not in (HALF, 1.0 - kept / of):
        raise RecipeError(
            f"{pattern} prunes {1.0 - kept / of:g} of the weights, not {sparsity:g}",
            where=f"{where}:sparsity",
            fix="Leave the sparsity out.",
        )
    return Target(1.0 - kept / of, kept, of)


def below_all(scores: Tensor, before: Tensor | None) -> Tensor:
    """Scores, lower than any other where a mask [out, in] of what was kept before is False."""
    return scores if before is None else scores.masked_fill(~before, PRUNED)


def without_lowest(scores: Tensor, count: int) -> Tensor:
    """Keeps all but the `count` lowest along the last dimension; of equal ones the first are pruned."""
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    edge = scores.kthvalue(count, -1, keepdim=True).values
    below, at = scores < edge, scores == edge
    return ~(below | (at & (at.cumsum(-1) <= count - below.sum(-1, keepdim=True))))


def of_every(scores: Tensor, kept: int, of: int) -> Tensor:
    """Keeps the `kept` highest of every `of` along the last dimension, which `of` divides."""
    return without_lowest(scores.unflatten(-1, (-1, of)), of - kept).flatten(-2)


def lowest_of_all(scores: Callable[[], Iterable[Tensor]], count: int) -> list[Tensor]:
    """The masks of several tensors with one threshold for all: the `count` lowest are pruned, ties by place.

    The threshold is found by halving the range of float32 (31 times), so that the scores need not be held together.

    Args:
        scores: gives the tensors anew at every call: not negative, float32.
        count: of all their elements.
    """
    low, high = 0, _INFINITY
    # Numbers that are not negative are in the order of their bits.
    while low < high:
        middle = (low + high) // 2
        if sum(int((one <= _number(middle)).sum()) for one in scores()) >= count:
            high = middle
        else:
            low = middle + 1
    edge = _number(low)
    left = count - sum(int((one < edge).sum()) for one in scores())
    masks = []
    for one in scores():
        at = one == edge
        masks.append(~((one < edge) | (at & (at.flatten().cumsum(0).view_as(at) <= left))))
        left = max(0, left - int(at.sum()))
    return masks


def _number(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


def sparsity_of(linear: Linear) -> float:
    """The share of a layer's weights that is zero."""
    return float((linear.weight == 0).sum()) / linear.weight.numel()
