"""Formats give the numbers of the worked examples, and errors of the size that is known for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from thalweg.numerics.float_formats import NAMES, FloatFormat, format_of
from thalweg.numerics.minifloat import E2M1
from thalweg.numerics.number_formats import Format, narrowed, rounded
from thalweg.numerics.range_search import searched

X = torch.tensor([[0.9, -0.31, 0.12, 0.05]])
FLOATS = [name for name in NAMES if name != "int"]
FORMATS = [format_of("int", bits, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]
FORMATS += [format_of(name) for name in FLOATS]
everything = pytest.mark.parametrize("format", FORMATS, ids=lambda one: one.name)


def close(found, expected, tolerance=1e-6):
    assert found.flatten().tolist() == pytest.approx(expected, rel=tolerance, abs=1e-12)


def gauss(rows=1024, columns=256):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


# -- the worked example -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "scale", "zero", "elements", "values"),
    [
        (8, 0.00474510, 65, [255, 0, 90, 76], [0.901569, -0.308431, 0.118627, 0.0521961]),
        (4, 0.0806667, 4, [15, 0, 5, 5], [0.887333, -0.322667, 0.0806667, 0.0806667]),
    ],
)
def test_asymmetric_integers(bits, scale, zero, elements, values):
    found = rounded(X, format_of("int", bits, symmetric=False), 0)
    close(found.scale, [scale], 1e-5)
    assert found.zero.tolist() == [[zero]]
    assert found.elements.tolist() == [elements]
    close(found.values(), values, 1e-5)


def test_symmetric_integers_have_the_grid_of_gptq():
    """scale = 2 max / (2^b - 1): the largest weight is at 7.5 steps, and the top of the grid at 7."""
    found = rounded(X, Format("int4", 4), 0)
    close(found.scale, [0.12])
    assert found.elements.tolist() == [[7, -3, 1, 0]]
    close(found.values(), [0.84, -0.36, 0.12, 0.0])
    assert found.zero is None
    # Other than in that code, also where no weight is negative.
    close(rounded(X.abs(), Format("int4", 4), 0).values(), [0.84, 0.36, 0.12, 0.0])


def test_groups_have_scales_of_their_own():
    x = torch.tensor([[0.9, -0.31, 0.012, 0.005]])
    found = rounded(x, Format("int4", 4), 2)
    close(found.scale, [0.12, 0.0016])
    assert found.elements.tolist() == [[7, -3, 7, 3]]
    assert found.group_of.tolist() == [0, 0, 1, 1]
    assert rounded(x, Format("int4", 4), 4).values()[0, 2:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "factor", "scale", "elements", "values"),
    [
        ("fp8", 1, 0.00200893, [448, -160, 60, 24], [0.9, -0.321429, 0.120536, 0.0482143]),
        ("fp8_e5m2", 1, 1.569475e-5, [57344, -20480, 7168, 3072], [0.9, -0.321429, 0.1125, 0.0482143]),
        ("fp4", 1, 0.15, [6, -2, 1, 0.5], [0.9, -0.3, 0.15, 0.075]),
        ("mxfp8", 1000, 2, [448, -160, 60, 24], [896, -320, 120, 48]),
        ("mxfp8_ceil", 1000, 4, [224, -80, 30, 12], [896, -320, 120, 48]),
        ("mxfp6_e3m2", 1, 2.0**-5, [28, -10, 4, 1.5], [0.875, -0.3125, 0.125, 0.046875]),
        ("mxfp6", 1, 2.0**-3, [7, -2.5, 1, 0.375], [0.875, -0.3125, 0.125, 0.046875]),
        ("mxfp4", 1, 2.0**-3, [6, -2, 1, 0.5], [0.75, -0.25, 0.125, 0.0625]),
    ],
)
def test_float_formats(name, factor, scale, elements, values):
    found = rounded(X * factor, format_of(name), 0)
    close(found.scale, [scale], 1e-5)
    assert found.elements.tolist() == [elements]
    close(found.values(), values, 1e-5)


def test_nvfp4_worked_example():
    x = torch.zeros(1, 32)
    x[0, :4] = torch.tensor([12.0, -3.0, 1.0, 0.2])
    x[0, 16:20] = torch.tensor([0.5, -0.26, 0.1, 0.03])
    found = rounded(x, format_of("nvfp4"), 0)
    assert float(found.tensor_scale) == pytest.approx(0.00446428591, rel=1e-7)
    assert found.scale.tolist() == [[448, 18]]
    assert found.elements[0, :4].tolist() == [6, -1.5, 0.5, 0]
    assert found.elements[0, 16:20].tolist() == [6, -3, 1, 0.5]
    close(found.values()[0, :4], [12, -3, 1, 0], 1e-6)
    close(found.values()[0, 16:20], [0.482143, -0.241071, 0.0803571, 0.0401786], 1e-5)
    other = rounded(x, format_of("mxfp4"), 0)
    assert other.scale.tolist() == [[2]]
    assert other.values()[0, 16:].abs().max() == 0


def test_the_floor_rule_cuts_and_the_ceil_rule_does_not():
    largest = torch.tensor([[1.99], [1.6], [1.5], [1.0]]).expand(4, 32)
    assert rounded(largest, format_of("mxfp4"), 0).values()[:, 0].tolist() == [1.5, 1.5, 1.5, 1.0]
    assert rounded(largest, format_of("mxfp4_ceil"), 0).values()[:, 0].tolist() == [2.0, 1.5, 1.5, 1.0]
    close(rounded(largest, format_of("mxfp4_ceil"), 0).scale, [0.5, 0.5, 0.25, 0.25])


# -- errors of the known size -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fp8", 0.0265), ("fp8_e5m2", 0.0525), ("mxfp8", 0.0292), ("mxfp8_ceil", 0.0266), ("mxfp8_e5m2", 0.0538),
        ("mxfp8_e5m2_ceil", 0.0528), ("mxfp6_e3m2", 0.0538), ("mxfp6_e3m2_ceil", 0.0528), ("mxfp6", 0.0284),
        ("mxfp4", 0.1147), ("mxfp4_ceil", 0.1156), ("nvfp4", 0.0953),
    ],
)  # fmt: skip
def test_errors_on_gaussian_numbers(name, expected):
    x = gauss()
    error = (rounded(x, format_of(name), 0).values() - x).norm() / x.norm()
    assert float(error) == pytest.approx(expected, rel=0.02)


def test_errors_of_integers_on_gaussian_numbers():
    x = gauss()
    error = float((rounded(x, format_of("int", 4, symmetric=False), 128).values() - x).norm() / x.norm())
    assert error == pytest.approx(0.101, rel=0.02)
    # GPTQ's grid has 15 steps over the range where the usual symmetric one, of the published 0.127, has 14.
    error = float((rounded(x, format_of("int", 4), 0).values() - x).norm() / x.norm())
    assert error == pytest.approx(0.127 * 14 / 15, rel=0.03)


# -- what holds for all -------------------------------------------------------------------------------------------


@everything
def test_rounding_twice_is_rounding_once(format):
    found = rounded(gauss(8, 64), format, 32)
    elements = found.elements.reshape(8, -1, format.block or 32)
    grid = format.fit(gauss(8, 64).reshape(8, -1, format.block or 32))
    assert torch.equal(grid.elements(grid.values(elements)), elements)


@everything
def test_powers_of_two_go_through(format):
    x = gauss(8, 64)
    assert torch.equal(rounded(x * 2.0**-7, format, 32).values(), rounded(x, format, 32).values() * 2.0**-7)


@pytest.mark.parametrize("name", FLOATS)
def test_signs_go_through(name):
    x = gauss(8, 64)
    assert torch.equal(rounded(-x, format_of(name), 32).values(), -rounded(x, format_of(name), 32).values())


@everything
def test_zeros_stay_zero(format):
    x = gauss(4, 64)
    x[0], x[1, ::2] = 0.0, 0.0
    found = rounded(x, format, 32)
    assert found.values().isfinite().all()
    assert found.values()[x == 0].abs().max() == 0
    where = torch.rand(4, 64, generator=torch.Generator().manual_seed(1)) < 0.3
    assert torch.equal(found.zeroed(where).values(), found.values() * ~where)


@everything
def test_values_are_elements_of_the_grid_of_so_many_bits(format):
    found = rounded(gauss(16, 64), format, 32)
    assert found.elements.unique().numel() <= 1 << format.bits
    assert float(found.elements.min()) >= format.low
    assert float(found.elements.max()) <= format.high
    codes = format.codes(found.elements)
    assert int(codes.max()) < 1 << format.bits


@everything
def test_what_is_kept_gives_the_values_back(format):
    """As a file would hold them: codes, scales in their own types."""
    found = rounded(gauss(8, 96), format, 32)
    codes = format.codes(found.elements)
    if isinstance(format, FloatFormat):
        elements = format.element.numbers(codes)
    else:
        # Two's complement: codes above the highest element stand for negative ones.
        elements = codes.float() - (codes > format.high).float() * (1 << format.bits)
    scale = found.scale
    if format.name.startswith("mx"):
        exponents = scale.log2()
        assert torch.equal(exponents, exponents.round().clamp(-127, 127))
        scale = torch.exp2((exponents + 127).to(torch.uint8).float() - 127)
    elif format.name == "nvfp4":
        scale = scale.to(torch.float8_e4m3fn).float()
    assert torch.equal(replace(found, elements=elements, scale=scale).values(), found.values())


@pytest.mark.parametrize(
    ("name", "group", "expected"),
    [
        ("mxfp8", 0, 8.25), ("mxfp6", 0, 6.25), ("mxfp4", 0, 4.25), ("nvfp4", 0, 4.5 + 32 / 2048),
        ("fp8", 128, 8.25), ("int", 128, 4.25), ("int", 0, 4 + 32 / 256),
    ],
)  # fmt: skip
def test_bits_per_weight(name, group, expected):
    assert rounded(gauss(8, 256), format_of(name), group).bits_per_weight == expected


@everything
def test_compact_elements_are_the_same_numbers(format):
    """Also at the ends of the grid, with scales of a narrow type, and where zeros are put in."""
    weight = 1e3 * gauss(64, 64)
    found = rounded(weight, format, 0 if format.block else 16, narrowed(format.fit, torch.bfloat16))
    small = found.compact()
    assert small.elements.element_size() <= 2
    assert torch.equal(small.numbers, found.elements)
    assert torch.equal(small.values(), found.values())
    assert torch.equal(format.codes(small.elements), format.codes(found.elements))
    where = weight > 0
    assert torch.equal(small.zeroed(where).values(), found.zeroed(where).values())
    assert small.zeroed(where).elements.dtype == format.compact


def test_zeros_of_integers_count():
    assert rounded(gauss(8, 256), format_of("int", 4, symmetric=False), 128).bits_per_weight == 4 + (32 + 4) / 128


def test_blocks_that_are_not_full():
    x = gauss(4, 40)
    found = rounded(x, format_of("mxfp4"), 0)
    assert found.scale.shape == (4, 2)
    assert found.elements.shape == (4, 40)
    assert torch.equal(found.values()[:, :32], rounded(x[:, :32], format_of("mxfp4"), 0).values())
    assert torch.equal(found.values()[:, 32:], rounded(x[:, 32:], format_of("mxfp4"), 8).values())
    with pytest.raises(ValueError, match="40 inputs cannot be divided into groups of 32"):
        rounded(x, format_of("int", 4), 32)


def test_a_block_far_below_the_tensor_vanishes_in_nvfp4():
    x = torch.cat([torch.ones(1, 16), torch.full((1, 16), 2e-6), torch.full((1, 16), 3e-6)], 1)
    values = rounded(x, format_of("nvfp4"), 0).values()[0, ::16]
    assert values.tolist() == [1.0, 0.0, pytest.approx(3e-6, rel=0.5)]
    assert float(values[2]) > 0


def test_extremes_of_e8m0():
    for magnitude in (1e-38, 1e38):
        found = rounded(torch.full((1, 32), magnitude), format_of("mxfp8"), 0)
        assert found.values().isfinite().all()
        assert 2.0**-127 <= float(found.scale) <= 2.0**127


# -- the search of ranges -----------------------------------------------------------------------------------------


@everything
def test_search_is_never_worse(format):
    x = gauss(16, 64) ** 3
    plain, best = rounded(x, format, 32), rounded(x, format, 32, searched(format))

    def error(found):
        return (found.values() - x).abs().pow(2.4).reshape(16, -1, format.block or 32).sum(-1)

    assert bool((error(best) <= error(plain) * (1 + 1e-6)).all())
    assert best.values().isfinite().all()


def test_search_finds_the_range_that_pays():
    """255 small weights and a large one in 3 bits: cutting the large one costs less than losing the others."""
    x = torch.cat([gauss(1, 255) * 0.1, torch.full((1, 1), 0.6)], 1)
    plain, best = (rounded(x, Format("int3", 3), 0, fit) for fit in (None, searched(Format("int3", 3))))
    close(plain.scale, [1.2 / 7])
    assert float((best.values() - x).abs().pow(2.4).sum()) < 0.8 * float((plain.values() - x).abs().pow(2.4).sum())
    share = 100 * float(best.scale / plain.scale)  # of the range, in whole hundredths
    assert 21 <= round(share) < 90
    assert share == pytest.approx(round(share), abs=1e-3)


def test_names_are_those_of_options():
    assert format_of("int", 4).name == "int4"
    assert format_of("int", 4, symmetric=False).name == "uint4"
    assert all(format_of(name).name == name for name in FLOATS)
    assert format_of("mxfp4").element is E2M1


@everything
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_scales_are_those_of_the_format_rounded(format, dtype):
    weight = 0.002 * gauss(16, 64)
    free = not format.scale_bits
    wide, narrow = (rounded(weight, format, 32, fit) for fit in (None, narrowed(format.fit, dtype)))
    assert torch.equal(narrow.scale, wide.scale.to(dtype) if free else wide.scale)
    assert wide.bits_per_weight - narrow.bits_per_weight == pytest.approx(16 / 32 if free else 0)
    # An end of the grid may be cut by what the scale lost, 2^-8 of it; all else is as near as before.
    lost = [float((one.values() - weight).square().mean()) for one in (wide, narrow)]
    assert lost[1] <= 1.02 * lost[0]
    zeros = rounded(torch.zeros(2, 64), format, 32, narrowed(format.fit, dtype))
    assert not zeros.values().any()
