"""Number formats: the values that a weight may have, how they share scales, and how a weight is rounded to them.

A value is (element - zero) * scale with an element of the format's grid. A scale (and a zero, for grids that are not
symmetric) serves a group of consecutive inputs of one row.

    integers, symmetric     scale = 2 max|x| / (2^b - 1), elements -2^(b-1) .. 2^(b-1) - 1: the grid of GPTQ's code and
                            of compressed-tensors; the top value is cut by half a step
    integers, asymmetric    lo = min(0, x), hi = max(0, x), scale = (hi - lo) / (2^b - 1), zero = round(-lo / scale),
                            elements 0 .. 2^b - 1; zero is on the grid

Rounding is to nearest, ties to even. Source: sheet of "Low-Precision Training of Large Language Models: Methods,
Challenges, and Opportunities" (2025, arXiv:2505.01043) for the family; GPTQ's code for the symmetric grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """A grid of elements and the rule for its scale.

    Attributes:
        name: as reports and options spell it, such as "int4".
        bits: of one element.
        symmetric: without a zero point.
    """

    name: str
    bits: int
    symmetric: bool = True

    @property
    def low(self) -> float:
        return -float(1 << (self.bits - 1)) if self.symmetric else 0.0

    @property
    def high(self) -> float:
        return float((1 << (self.bits - 1)) - 1) if self.symmetric else float((1 << self.bits) - 1)

    def fit(self, weights: Tensor) -> Grid:
        """The grid for groups of weights [..., g], one scale for each of [...]."""
        steps = float((1 << self.bits) - 1)
        if self.symmetric:
            scale = weights.abs().amax(-1, keepdim=True) * 2.0 / steps
            zero = None
        else:
            low = weights.amin(-1, keepdim=True).clamp_max(0.0)
            scale = (weights.amax(-1, keepdim=True).clamp_min(0.0) - low) / steps
        # A group of zeros has any scale: with 1 its elements are zero.
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        if not self.symmetric:
            zero = (-low / scale).round().clamp(self.low, self.high)
        return Grid(self, scale, zero)

    def nearest(self, elements: Tensor) -> Tensor:
        """The element of the grid that is nearest, ties to even; beyond the ends, the end."""
        return elements.round().clamp(self.low, self.high)


@dataclass(frozen=True)
class Grid:
    """A format with scales [..., 1] and, where it is not symmetric, zeros [..., 1]."""

    format: Format
    scale: Tensor
    zero: Tensor | None = None

    def elements(self, weights: Tensor) -> Tensor:
        """The elements nearest to weights [..., k]."""
        shifted = weights / self.scale
        return self.format.nearest(shifted if self.zero is None else shifted + self.zero)

    def values(self, elements: Tensor) -> Tensor:
        return (elements if self.zero is None else elements - self.zero) * self.scale

    def round(self, weights: Tensor) -> Tensor:
        """The values nearest to weights [..., k]."""
        return self.values(self.elements(weights))


@dataclass(frozen=True)
class Quantized:
    """A weight on its grids.

    Attributes:
        format: of the elements.
        elements: [out, in].
        scale: [out, groups].
        zero: [out, groups], or None for symmetric formats.
        group_of: int64 [in], the group of every column; consecutive but where columns were reordered.
    """

    format: Format
    elements: Tensor
    scale: Tensor
    zero: Tensor | None
    group_of: Tensor

    def values(self) -> Tensor:
        """The weight [out, in]."""
        elements = self.elements if self.zero is None else self.elements - self.zero[:, self.group_of]
        return elements * self.scale[:, self.group_of]

    def zeroed(self, where: Tensor) -> Quantized:
        """The same with the value 0 where a mask [out, in] says so."""
        zeros = torch.zeros_like(self.elements) if self.zero is None else self.zero[:, self.group_of]
        return replace(self, elements=torch.where(where, zeros, self.elements))


def rounded(weight: Tensor, format: Format, group: int) -> Quantized:
    """A weight [out, in] rounded to nearest, with a scale for every `group` inputs of a row (0: for a whole row).

    Raises:
        ValueError: the number of inputs is no multiple of the group.
    """
    rows, columns = weight.shape
    group = group or columns
    if columns % group:
        raise ValueError(f"{columns} inputs cannot be divided into groups of {group}")
    pieces = weight.reshape(rows, columns // group, group)
    grid = format.fit(pieces)
    zero = None if grid.zero is None else grid.zero.squeeze(-1)
    return Quantized(
        format,
        grid.elements(pieces).reshape(rows, columns),
        grid.scale.squeeze(-1),
        zero,
        torch.arange(columns, device=weight.device) // group,
    )
