"""Formats for weights whose elements are small floating-point numbers, and all formats by name.

    fp8, fp6, fp4      value = element * scale, scale = max|x| / largest element of a row or group, in float32 (fp8:
                       or a model's half precision)
    mxfp8, 6, 4        OCP microscaling: blocks of 32 inputs, scale 2^k stored as E8M0 (8 bits of exponent),
                       k = floor(log2 max|x|) - top exponent of the element. A largest value whose mantissa exceeds that
                       of the largest element is cut: in mxfp4, all of (1.5, 2) 2^n becomes 1.5 2^n.
    ..._ceil           the same with k = ceil(log2(max|x| / largest element)), NVIDIA's rule: nothing is cut
    nvfp4              blocks of 16 inputs, tensor scale d = max|X| / (448 * 6) in float32,
                       scale s = E4M3(max|x| / 6 / d), value = element * (s d)

Elements are found with the scale that is stored. In a block that is not full the missing inputs count as zeros. A block
of zeros has the scale 1.

Sources: OCP Microscaling Formats (MX) Specification v1.0 (2023); "Pretraining Large Language Models with NVFP4" (2025,
arXiv:2509.25149), for weights without its 16 x 16 tiles; "Low-Precision Training of Large Language Models: Methods,
Challenges, and Opportunities" (2025, arXiv:2505.01043) for the family. NVIDIA's code multiplies by the inverse of s d
where this divides by s d, so weights within float32's rounding of a tie may fall to the other side. Libraries differ in
MX scales: compressed-tensors, for one, rounds max|x| to the element's mantissa before it takes the floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from thalweg.numerics.minifloat import E2M1, E2M3, E3M2, E4M3, E5M2, Minifloat
from thalweg.numerics.number_formats import Format, Grid, positive

# Powers of two that E8M0 has.
_LOWEST, _HIGHEST = -127, 127


class Scaling(Protocol):
    """How groups of weights share scales.

    Attributes:
        block: how many inputs share one; 0 where a group may have any size.
        bits: of a stored scale.
    """

    @property
    def block(self) -> int: ...

    @property
    def bits(self) -> int: ...

    def tensor_scale(self, weight: Tensor, element: Minifloat) -> Tensor | None:
        """The scale [] of a whole weight."""

    def scale(self, largest: Tensor, element: Minifloat, tensor_scale: Tensor | None) -> Tensor:
        """The scales of groups from their largest |x|, shapes alike, in units of the tensor's scale."""
        ...


@dataclass(frozen=True)
class AnyScale:
    """A scale that puts the largest weight on the largest element; of `bits` bits, or 0 for any float type."""

    block: int = 0
    bits: int = 32

    def tensor_scale(self, weight: Tensor, element: Minifloat) -> Tensor | None:
        return None

    def scale(self, largest: Tensor, element: Minifloat, tensor_scale: Tensor | None) -> Tensor:
        return positive(largest / element.largest)


@dataclass(frozen=True)
class PowerOfTwo:
    """An E8M0 scale; `ceil`: rounded up, so that no element is cut, where the OCP rule rounds down."""

    ceil: bool
    block: int = 32
    bits: int = 8

    def tensor_scale(self, weight: Tensor, element: Minifloat) -> Tensor | None:
        return None

    def scale(self, largest: Tensor, element: Minifloat, tensor_scale: Tensor | None) -> Tensor:
        fraction, exponent = torch.frexp(largest)  # fraction in [0.5, 1)
        power = exponent - 1 - element.top_exponent
        if self.ceil:
            # The log2 of a quotient could round to the wrong side of a power of two; fractions compare exactly.
            power = power + (fraction > element.top_fraction).int()
        scale = torch.ldexp(torch.ones_like(largest), power.clamp(_LOWEST, _HIGHEST))
        return torch.where(largest == 0, torch.ones_like(scale), scale)


@dataclass(frozen=True)
class TwoLevels:
    """An E4M3 scale for a block, in units of a float32 scale that puts the largest weight on 448 times the element."""

    block: int = 16
    bits: int = 8

    def tensor_scale(self, weight: Tensor, element: Minifloat) -> Tensor | None:
        return 1.0 / (E4M3.largest * element.largest / positive(weight.abs().amax()))

    def scale(self, largest: Tensor, element: Minifloat, tensor_scale: Tensor | None) -> Tensor:
        assert tensor_scale is not None
        # Where a block's scale is too small for E4M3 all of its elements are zero, whatever the scale.
        return positive(E4M3.nearest(largest / element.largest * (1.0 / tensor_scale)))


@dataclass(frozen=True)
class FloatFormat(Format):
    """Elements are small floats.

    Attributes:
        element: of the grid.
        scaling: the rule for scales.
    """

    element: Minifloat = E2M1
    scaling: Scaling = AnyScale()

    @property
    def low(self) -> float:
        return -self.element.largest

    @property
    def high(self) -> float:
        return self.element.largest

    @property
    def block(self) -> int:
        return self.scaling.block

    @property
    def scale_bits(self) -> int:
        return self.scaling.bits

    @property
    def compact(self) -> torch.dtype:
        return torch.float16  # holds all of FP8, FP6 and FP4

    def tensor_scale(self, weight: Tensor) -> Tensor | None:
        return self.scaling.tensor_scale(weight, self.element)

    def fit(self, weights: Tensor, tensor_scale: Tensor | None = None) -> Grid:
        whole = self.tensor_scale(weights) if tensor_scale is None else tensor_scale
        return Grid(self, self.scaling.scale(weights.abs().amax(-1, keepdim=True), self.element, whole), None, whole)

    def nearest(self, elements: Tensor) -> Tensor:
        return self.element.nearest(elements)

    def codes(self, elements: Tensor) -> Tensor:
        return self.element.codes(elements.float())


_MX = {"mxfp8": E4M3, "mxfp8_e5m2": E5M2, "mxfp6": E2M3, "mxfp6_e3m2": E3M2, "mxfp4": E2M1}
_RULES: dict[str, tuple[Minifloat, Scaling]] = {
    "fp8": (E4M3, AnyScale(bits=0)),  # the only one with a layout on disk, where scales have the model's type
    "fp8_e5m2": (E5M2, AnyScale()),
    "fp6": (E2M3, AnyScale()),
    "fp6_e3m2": (E3M2, AnyScale()),
    "fp4": (E2M1, AnyScale()),
    **{name: (element, PowerOfTwo(ceil=False)) for name, element in _MX.items()},
    **{f"{name}_ceil": (element, PowerOfTwo(ceil=True)) for name, element in _MX.items()},
    "nvfp4": (E2M1, TwoLevels()),
}
# What an option `format` may be: "int" for integers, whose bits and symmetry are options of their own.
NAMES = ("int", *_RULES)


def format_of(name: str, bits: int = 4, symmetric: bool = True) -> Format:
    """The format that options select.

    Args:
        name: one of NAMES.
        bits: of an integer; other formats have their own.
        symmetric: of integers.
    """
    if name == "int":
        return Format(f"int{bits}" if symmetric else f"uint{bits}", bits, symmetric)
    element, scaling = _RULES[name]
    return FloatFormat(name, element.bits, True, element, scaling)
