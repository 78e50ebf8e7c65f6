"""Small floating-point numbers: sign, e exponent bits, m mantissa bits, no infinity in use.

    value = (1 + M / 2^m) 2^(E - bias), and (M / 2^m) 2^(1 - bias) where E = 0

| name | bias | largest | smallest normal | smallest | magnitudes |
|---|---|---|---|---|---|
| e4m3 (FP8, as torch.float8_e4m3fn) | 7 | 448 | 2^-6 | 2^-9 | 127 |
| e5m2 (FP8, as torch.float8_e5m2) | 15 | 57344 | 2^-14 | 2^-16 | 124 |
| e3m2 (FP6) | 3 | 28 | 0.25 | 0.0625 | 32 |
| e2m3 (FP6) | 1 | 7.5 | 1 | 0.125 | 32 |
| e2m1 (FP4) | 1 | 6 | 1 | 0.5 | 8 |

Rounding is to nearest, ties to the even code; what lies beyond the largest number becomes the largest (a cast to
float8 gives infinity or NaN there, on some devices). NaN stays NaN.

Source: OCP Microscaling Formats (MX) Specification v1.0 (2023) and OCP 8-bit Floating Point Specification (2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Minifloat:
    """A format of single numbers.

    Attributes:
        exponent_bits, mantissa_bits: e and m.
        bias: of the exponent.
        largest: the largest finite number; codes above it are NaN or infinity.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: float

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def top_exponent(self) -> int:
        """floor(log2(largest))."""
        return math.frexp(self.largest)[1] - 1

    @property
    def top_fraction(self) -> float:
        """largest / 2^(top_exponent + 1), in [0.5, 1)."""
        return math.frexp(self.largest)[0]

    @cached_property
    def magnitudes(self) -> Tensor:
        """All numbers that are not negative, in order: number i has the code i. [count] float64."""
        codes = torch.arange(1 << (self.bits - 1))
        exponent, mantissa = codes >> self.mantissa_bits, codes & ((1 << self.mantissa_bits) - 1)
        fraction = mantissa.double() / (1 << self.mantissa_bits)
        normal = torch.ldexp(1.0 + fraction, exponent - self.bias)
        values = torch.where(exponent == 0, torch.ldexp(fraction, torch.tensor(1 - self.bias)), normal)
        return values[values <= self.largest]

    def nearest(self, values: Tensor) -> Tensor:
        """The nearest number of the format, in the dtype of the values (float32 or float64)."""
        values = values.clamp(-self.largest, self.largest)
        step = self._step(values)
        return (values / step).round() * step

    def stochastic(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """One of the two neighbours, the upper with probability (value - lower) / (upper - lower).

        The mean is the value, up to the largest number; what lies beyond becomes the largest.
        """
        values = values.clamp(-self.largest, self.largest)
        step = self._step(values)
        draws = torch.rand(values.shape, generator=generator, dtype=values.dtype, device=values.device)
        return (values / step + draws).floor() * step

    def codes(self, numbers: Tensor) -> Tensor:
        """Numbers of the format as bits, uint8: the sign in front of exponent and mantissa."""
        place = torch.searchsorted(self.magnitudes.to(numbers.device), numbers.abs().double().contiguous())
        return (place + (numbers.signbit().long() << (self.bits - 1))).to(torch.uint8)

    def numbers(self, codes: Tensor) -> Tensor:
        """What `codes` has made, back again: float32."""
        sign = codes.long() >> (self.bits - 1)
        magnitudes = self.magnitudes.float().to(codes.device)[codes.long() & ((1 << (self.bits - 1)) - 1)]
        return torch.where(sign == 1, -magnitudes, magnitudes)

    def _step(self, values: Tensor) -> Tensor:
        """The distance of neighbours where a value lies: 2^(max(its exponent, 1 - bias) - m)."""
        exponent = torch.frexp(values)[1] - 1
        exponent = exponent.clamp_min(1 - self.bias) - self.mantissa_bits
        return torch.ldexp(torch.ones_like(values), exponent)


E4M3 = Minifloat(4, 3, 7, 448.0)
E5M2 = Minifloat(5, 2, 15, 57344.0)
E3M2 = Minifloat(3, 2, 3, 28.0)
E2M3 = Minifloat(2, 3, 1, 7.5)
E2M1 = Minifloat(2, 1, 1, 6.0)
