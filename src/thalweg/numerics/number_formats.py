"""Number formats: the values that a weight may have, how they share scales, and how a weight is rounded to them.

A value is (element - zero) * scale with an element of the format's grid. A scale (and a zero, for grids that are not
symmetric) serves a group of consecutive inputs of one row. Formats of small floats are in `float_formats`.

    integers, symmetric     scale = 2 max|x| / (2^b - 1), elements -2^(b-1) .. 2^(b-1) - 1: the grid of GPTQ's code and
                            of compressed-tensors; the top value is cut by half a step
    integers, asymmetric    lo = min(0, x), hi = max(0, x), scale = (hi - lo) / (2^b - 1), zero = round(-lo / scale),
                            elements 0 .. 2^b - 1; zero is on the grid

Rounding is to nearest, ties to even. Source: sheet of "Low-Precision Training of Large Language Models: Methods,
Challenges, and Opportunities" (2025, arXiv:2505.01043) for the family; GPTQ's code for the symmetric grid, here also
for groups without a negative weight, of which that code loses the upper half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

# A rule for scales: called as `Format.fit` is.
Fit = Callable[[Tensor, Tensor | None], "Grid"]


@dataclass(frozen=True)
class Format:
    """A grid of elements and the rule for its scale: integers; other formats derive from it.

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

    @property
    def block(self) -> int:
        """How many inputs share a scale, where the format says so; 0 where a group may have any size."""
        return 0

    @property
    def scale_bits(self) -> int:
        """Of a stored scale, where the format says so; 0 where a scale may be of any float type."""
        return 0

    @property
    def compact(self) -> torch.dtype:
        """A type that holds every element exactly in as few bytes as torch has for them."""
        return torch.int8 if self.symmetric else torch.uint8

    def tensor_scale(self, weight: Tensor) -> Tensor | None:
        """The scale [] of a whole weight, that the scales of its blocks are multiplied by; None without one."""
        return None

    def fit(self, weights: Tensor, tensor_scale: Tensor | None = None) -> Grid:
        """The grid for groups of weights [..., g], one scale for each of [...].

        Args:
            weights: float32 or float64.
            tensor_scale: of the weight that the groups are of; where left out, they are the whole of it.
        """
        steps = float((1 << self.bits) - 1)
        if self.symmetric:
            scale = weights.abs().amax(-1, keepdim=True) * 2.0 / steps
            zero = None
        else:
            low = weights.amin(-1, keepdim=True).clamp_max(0.0)
            scale = (weights.amax(-1, keepdim=True).clamp_min(0.0) - low) / steps
        scale = positive(scale)
        if not self.symmetric:
            zero = (-low / scale).round().clamp(self.low, self.high)
        return Grid(self, scale, zero)

    def nearest(self, elements: Tensor) -> Tensor:
        """The element of the grid that is nearest, ties to even; beyond the ends, the end."""
        return elements.round().clamp(self.low, self.high)

    def codes(self, elements: Tensor) -> Tensor:
        """Elements as they are stored, uint8: the lowest `bits` bits, in two's complement where there are signs."""
        return (elements.long() & ((1 << self.bits) - 1)).to(torch.uint8)


def positive(scale: Tensor) -> Tensor:
    """The scale, and 1 where it is 0: a group of zeros may have any, and with 1 its elements are zero."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


@dataclass(frozen=True)
class Grid:
    """A format with scales [..., 1] and, where it has them, zeros [..., 1] and the tensor's scale []."""

    format: Format
    scale: Tensor
    zero: Tensor | None = None
    tensor_scale: Tensor | None = None

    @property
    def step(self) -> Tensor:
        """What an element is multiplied by."""
        return self.scale if self.tensor_scale is None else self.scale * self.tensor_scale

    def elements(self, weights: Tensor) -> Tensor:
        """The elements nearest to weights [..., k]."""
        shifted = weights / self.step
        return self.format.nearest(shifted if self.zero is None else shifted + self.zero)

    def values(self, elements: Tensor) -> Tensor:
        return (elements if self.zero is None else elements - self.zero) * self.step

    def round(self, weights: Tensor) -> Tensor:
        """The values nearest to weights [..., k]."""
        return self.values(self.elements(weights))


@dataclass(frozen=True)
class Quantized:
    """A weight on its grids, with all that its exact values need.

    Attributes:
        format: of the elements.
        elements: [out, in], in a float type or the format's compact one.
        scale: [out, groups], of the type that it is stored in where the format leaves it open.
        zero: [out, groups], or None for symmetric formats.
        group_of: int64 [in], the group of every column.
        tensor_scale: [], or None for formats without one.
    """

    format: Format
    elements: Tensor
    scale: Tensor
    zero: Tensor | None
    group_of: Tensor
    tensor_scale: Tensor | None = None

    @property
    def grid(self) -> Grid:
        """Of all groups: scales [out, groups]."""
        return Grid(self.format, self.scale, self.zero, self.tensor_scale)

    @property
    def bits_per_weight(self) -> float:
        """Of what is stored: elements, scales, zeros and the tensor's scale."""
        zeros = 0 if self.zero is None else self.zero.numel() * self.format.bits
        tensor = 0 if self.tensor_scale is None else 32
        count = self.elements.numel()
        scales = self.scale.numel() * (self.format.scale_bits or 8 * self.scale.element_size())
        return (count * self.format.bits + scales + zeros + tensor) / count

    @property
    def numbers(self) -> Tensor:
        """The elements to calculate with [out, in], float32 or float64."""
        return self.elements if self.elements.dtype == torch.float64 else self.elements.float()

    def values(self) -> Tensor:
        """The weight [out, in]."""
        elements = self.numbers if self.zero is None else self.numbers - self.zero[:, self.group_of]
        return elements * self.grid.step[:, self.group_of]

    def zeroed(self, where: Tensor) -> Quantized:
        """The same with the value 0 where a mask [out, in] says so."""
        zeros = torch.zeros_like(self.elements) if self.zero is None else self.zero[:, self.group_of]
        return replace(self, elements=torch.where(where, zeros.to(self.elements.dtype), self.elements))

    def compact(self) -> Quantized:
        """The same in fewer bytes of memory."""
        return replace(self, elements=self.elements.to(self.format.compact))


def narrowed(fit: Fit, dtype: torch.dtype) -> Fit:
    """A rule whose scales are of a type, if it is narrower than theirs and the format leaves it open.

    Files hold scales in the type of their model. Weights that are rounded with such scales are what is read back.
    """

    def narrow(weights: Tensor, tensor_scale: Tensor | None) -> Grid:
        grid = fit(weights, tensor_scale)
        if grid.format.scale_bits or dtype.itemsize >= grid.scale.element_size():
            return grid
        return replace(grid, scale=positive(grid.scale.to(dtype)))

    return narrow


def rounded(weight: Tensor, format: Format, group: int, fit: Fit | None = None) -> Quantized:
    """A weight [out, in] rounded to nearest.

    Args:
        weight: float32 or float64.
        format: of the elements.
        group: a scale for every so many inputs of a row (0: for a whole row); formats with blocks have their own.
        fit: the rule for scales, where it is not the format's own.

    Raises:
        ValueError: the number of inputs is no multiple of the group.
    """
    rows, columns = weight.shape
    group = format.block or group or columns
    missing = -columns % group
    if missing and not format.block:
        raise ValueError(f"{columns} inputs cannot be divided into groups of {group}")
    pieces = functional.pad(weight, (0, missing)).reshape(rows, -1, group)
    grid = (fit or format.fit)(pieces, format.tensor_scale(weight))
    return Quantized(
        format,
        grid.elements(pieces).reshape(rows, -1)[:, :columns],
        grid.scale.squeeze(-1),
        None if grid.zero is None else grid.zero.squeeze(-1),
        torch.arange(columns, device=weight.device) // group,
        grid.tensor_scale,
    )
