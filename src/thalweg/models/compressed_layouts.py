"""Which layout of the compressed-tensors library holds a quantized weight, and its tensors in that layout.

    integers, 1 to 8 bits   pack-quantized         weight_packed: b-bit words one after the other in int32, unsigned,
                                                   2^(b-1) added; weight_scale in the model's type; weight_zero_point
                                                   packed alike, down the rows; weight_shape
    fp8 (e4m3)              float-quantized        weight: float8; weight_scale in the model's type
    mxfp8, mxfp6, mxfp4     mxfp8-quantized,       weight or weight_packed; weight_scale: the exponent of two plus 127,
                            mxfp6-pack-quantized,  uint8
                            mxfp4-pack-quantized
    nvfp4                   nvfp4-pack-quantized   weight_packed: two in a byte; weight_scale: float8;
                                                   weight_global_scale: the inverse of the tensor's scale

One scale serves a row or a group of consecutive inputs. What has none of these layouts stays as it is: GPT-2's Conv1D,
reordered columns, zero points between integers, other floats, and zeros that are only zeros (the library has dropped
its layouts for sparse weights).

transformers reads a model with one layout as it reads others, whatever it is. A model with several it leaves packed
until the first forward pass, and what it does then knows no packed zero points and, but for bfloat16 models, neither
4-bit nor microscaled floats. There an integer with a zero point is stored as its difference from it, a signed integer
with one bit more (8 bits: unpacked), and those floats have no layout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from thalweg.models.linears import Linear
from thalweg.numerics.number_formats import Quantized

PACKED, INTS, FLOATS = "pack-quantized", "int-quantized", "float-quantized"
NVFP4, MXFP4 = "nvfp4-pack-quantized", "mxfp4-pack-quantized"
MXFP6, MXFP8 = "mxfp6-pack-quantized", "mxfp8-quantized"
# By the name of our format: theirs, bits, weights that share a scale where the format says so.
SMALL_FLOATS: dict[str, tuple[str, int, int]] = {
    "fp8": (FLOATS, 8, 0),
    "fp8_e4m3": (FLOATS, 8, 0),
    "nvfp4": (NVFP4, 4, 16),
    **{name + rule: layout for rule in ("", "_ceil") for name, layout in {
        "mxfp4": (MXFP4, 4, 32), "mxfp6": (MXFP6, 6, 32), "mxfp8": (MXFP8, 8, 32)
    }.items()},
}  # fmt: skip
MICROSCALED = (MXFP4, MXFP6, MXFP8)
EXPONENT_BIAS = 127

# What a tensor will be: its type and shape.
Spec = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """A layout, in the library's words.

    Attributes:
        format: its name.
        bits: of an element.
        group: inputs that share a scale; 0 for a whole row.
        zeros: whether groups have zero points.
        offset: what is taken from an element before it is stored; None: its group's zero.
    """

    format: str
    bits: int
    group: int
    zeros: bool = False
    offset: int | None = 0

    def __str__(self) -> str:
        kind = "integers" if self.format in (PACKED, INTS) else "floats"
        scales = f"a scale for {self.group}" if self.group else "a scale a row"
        return f"{self.format}: {self.bits}-bit {kind}, {scales}{' with a zero point' if self.zeros else ''}"

    @property
    def needs_bfloat16(self) -> bool:
        """Whether the library makes bfloat16 of it, whatever the model's type."""
        return self.format == NVFP4 or self.format in MICROSCALED

    def arguments(self) -> dict[str, Any]:
        """Of the library's `QuantizationArgs`."""
        found: dict[str, Any] = {
            "num_bits": self.bits,
            "type": "int" if self.format in (PACKED, INTS) else "float",
            "symmetric": not self.zeros,
            "strategy": "tensor_group" if self.format == NVFP4 else "group" if self.group else "channel",
        }
        if self.group:
            found["group_size"] = self.group
        if self.needs_bfloat16:
            found["scale_dtype"] = "torch.uint8" if self.format in MICROSCALED else "torch.float8_e4m3fn"
        return found

    def specs(self, rows: int, columns: int, dtype: torch.dtype) -> dict[str, Spec]:
        """The tensors that stand for a weight [rows, columns] of a model of this type, by the ends of their names."""
        groups = columns // (self.group or columns)
        scale = torch.uint8 if self.format in MICROSCALED else torch.float8_e4m3fn if self.format == NVFP4 else dtype
        found: dict[str, Spec] = {"weight_scale": (scale, (rows, groups))}
        if self.format == PACKED:
            found["weight_packed"] = (torch.int32, (rows, math.ceil(columns * self.bits / 32)))
            found["weight_shape"] = (torch.int64, (2,))
        elif self.format in (MXFP4, MXFP6, NVFP4):
            found["weight_packed"] = (torch.uint8, (rows, columns * self.bits // 8))
        else:
            found["weight"] = (torch.int8 if self.format == INTS else torch.float8_e4m3fn, (rows, columns))
        if self.format == NVFP4:
            found["weight_global_scale"] = (torch.float32, (1,))
        if self.zeros:
            packed = (torch.int32, (math.ceil(rows * self.bits / 32), groups))
            found["weight_zero_point"] = packed if self.format == PACKED else (torch.int8, (rows, groups))
        return found


def layouts(linears: Mapping[str, Linear]) -> tuple[dict[str, Layout], dict[str, str]]:
    """The layout of each linear layer of a model that has one; why others that were compressed have none."""
    found: dict[str, Layout] = {}
    reasons: dict[str, str] = {}
    for name, linear in linears.items():
        answer = _alone(linear)
        if isinstance(answer, Layout):
            found[name] = answer
        elif answer:
            reasons[name] = answer
    for name, layout in list(found.items()) if len(set(found.values())) > 1 else []:
        if layout.needs_bfloat16 and linears[name].weight.dtype != torch.bfloat16:
            reasons[name] = f"beside other layouts {layout.format} is read in bfloat16 models only"
            del found[name]
    if len(set(found.values())) > 1:
        found = {name: _together(layout) for name, layout in found.items()}
    return found, reasons


def _alone(linear: Linear) -> Layout | str:
    """The layout of a weight, or why it has none; the empty string where nothing was decided about it."""
    quantized, (_, columns) = linear.fixed.quantized, linear.shape
    if quantized is None:
        return "" if linear.fixed.mask is None else "zeros have no layout of their own"
    if linear.transposed:
        return "Conv1D is no layer that the library knows"
    if linear.broken() is not None:
        return "the weights have left their grid"
    groups = quantized.scale.shape[1]
    group = columns // groups
    if not torch.equal(quantized.group_of.cpu(), torch.arange(columns) // max(group, 1)) or columns % groups:
        return "a scale serves inputs that do not follow each other, or not as many as others"
    return _of_format(quantized, group if groups > 1 else 0, columns)


def _of_format(quantized: Quantized, group: int, columns: int) -> Layout | str:
    name, bits, zero = quantized.format.name, quantized.format.bits, quantized.zero
    if name in SMALL_FLOATS:
        format, bits, own = SMALL_FLOATS[name]
        # Four numbers of 6 bits fill three bytes, two of 4 bits one; the groups of these formats hold whole bytes.
        if own and columns % own:
            return f"{columns} inputs are not whole groups of {own}"
        return Layout(format, bits, own or group)
    if not re.fullmatch(r"u?int\d+", name) or not 1 <= bits <= 8:
        return f"{name} has no layout"
    if zero is None:
        return Layout(PACKED, bits, group)
    if not torch.equal(zero, zero.round()):
        return "zero points between integers"
    return Layout(PACKED, bits, group, zeros=True, offset=1 << (bits - 1))


def _together(layout: Layout) -> Layout:
    """What is read in a model with several layouts."""
    if not layout.zeros:
        return layout
    if layout.bits == 8:
        return replace(layout, format=INTS)
    return replace(layout, bits=layout.bits + 1, zeros=False, offset=None)


def packed(quantized: Quantized, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a layout, by the ends of their names; the compressed-tensors library packs them."""
    from compressed_tensors.compressors.mxfp6.helpers import pack_fp6_to_uint8
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    elements, zero = quantized.numbers, quantized.zero
    if layout.offset is None:
        assert zero is not None
        elements = elements - zero[:, quantized.group_of]
    elif layout.offset:
        elements = elements - layout.offset
    found = {"weight_scale": _stored_scale(quantized.scale, layout, dtype)}
    if layout.format == PACKED:
        found["weight_packed"] = pack_to_int32(elements.to(torch.int8), layout.bits)
        found["weight_shape"] = torch.tensor(elements.shape)
    elif layout.format == MXFP6:
        found["weight_packed"] = pack_fp6_to_uint8(elements)
    elif layout.format in (MXFP4, NVFP4):
        found["weight_packed"] = pack_fp4_to_uint8(elements)
    else:
        found["weight"] = elements.to(torch.int8 if layout.format == INTS else torch.float8_e4m3fn)
    if layout.format == NVFP4:
        whole = getattr(quantized, "tensor_scale", None)
        found["weight_global_scale"] = 1.0 / (torch.ones(1) if whole is None else whole.float().reshape(1))
    if layout.zeros:
        assert zero is not None
        assert layout.offset is not None
        stored = (zero - layout.offset).to(torch.int8)
        found["weight_zero_point"] = (
            pack_to_int32(stored, layout.bits, packed_dim=0) if layout.format == PACKED else stored
        )
    return {name: value.contiguous() for name, value in found.items()}


def _stored_scale(scale: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    if layout.format in MICROSCALED:
        fraction, exponent = torch.frexp(scale)
        assert bool((fraction == 0.5).all()), "scales of microscaled formats are powers of two"
        return (exponent - 1 + EXPONENT_BIAS).to(torch.uint8)
    return scale.to(torch.float8_e4m3fn if layout.format == NVFP4 else dtype)


def scheme(layout: Layout, targets: list[str]) -> Any:
    """The library's `QuantizationScheme` for layers with these names or classes."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    return QuantizationScheme(targets=targets, weights=QuantizationArgs(**layout.arguments()), format=layout.format)


def read_back(tensors: dict[str, Tensor], layout: Layout, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that the library makes of the tensors of a layout, in the model's type."""
    from compressed_tensors.compressors import BaseCompressor

    reader = BaseCompressor.get_value_from_registry(layout.format)
    return reader.decompress(tensors, scheme(layout, []))["weight"].to(dtype)
