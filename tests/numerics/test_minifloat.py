"""Small floats are what the standard's tables and torch's casts say, code for code."""

from __future__ import annotations

import pytest
import torch

from thalweg.numerics.minifloat import E2M1, E2M3, E3M2, E4M3, E5M2

ALL = {"e4m3": E4M3, "e5m2": E5M2, "e3m2": E3M2, "e2m3": E2M3, "e2m1": E2M1}
TORCH = [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)]


@pytest.mark.parametrize(
    ("name", "largest", "normal", "smallest", "count"),
    [
        ("e4m3", 448.0, 2.0**-6, 2.0**-9, 127),
        ("e5m2", 57344.0, 2.0**-14, 2.0**-16, 124),
        ("e3m2", 28.0, 0.25, 0.0625, 32),
        ("e2m3", 7.5, 1.0, 0.125, 32),
        ("e2m1", 6.0, 1.0, 0.5, 8),
    ],
)
def test_table(name, largest, normal, smallest, count):
    element = ALL[name]
    table = element.magnitudes
    assert len(table) == count
    assert table[0] == 0.0
    assert table[1] == smallest
    assert table[-1] == largest == element.largest
    assert table[1 << element.mantissa_bits] == normal
    assert bool((table.diff() > 0).all())
    assert 2.0**element.top_exponent <= largest < 2.0 ** (element.top_exponent + 1)
    assert element.top_fraction * 2.0 ** (element.top_exponent + 1) == largest


def test_small_tables_in_full():
    assert E2M1.magnitudes.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert E3M2.magnitudes[:12].tolist() == [
        0,
        0.0625,
        0.125,
        0.1875,
        0.25,
        0.3125,
        0.375,
        0.4375,
        0.5,
        0.625,
        0.75,
        0.875,
    ]
    assert E3M2.magnitudes[-8:].tolist() == [8, 10, 12, 14, 16, 20, 24, 28]
    assert E2M3.magnitudes.tolist() == [i / 8 for i in range(16)] + [2 + i / 4 for i in range(8)] + [
        4 + i / 2 for i in range(8)
    ]
    assert E4M3.magnitudes[-4:].tolist() == [352, 384, 416, 448]
    assert E5M2.magnitudes[-4:].tolist() == [32768, 40960, 49152, 57344]


@pytest.mark.parametrize(("element", "dtype"), TORCH)
def test_rounding_is_that_of_torch_bit_for_bit(element, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(262_144, generator=generator) * torch.exp2(torch.randn(262_144, generator=generator) * 8)
    values = values.clamp(-element.largest, element.largest)
    values[:4] = torch.tensor([0.0, -0.0, element.largest, -element.largest])
    found, cast = element.nearest(values), values.to(dtype)
    assert torch.equal(found, cast.float())
    assert torch.equal(element.codes(found), cast.view(torch.uint8))
    assert torch.equal(element.numbers(cast.view(torch.uint8)), cast.float())


@pytest.mark.parametrize(("element", "dtype"), TORCH)
def test_every_tie_and_its_neighbours_go_where_torch_puts_them(element, dtype):
    table = element.magnitudes.float()
    ties = (table[1:] + table[:-1]) / 2
    infinity = torch.tensor(torch.inf)
    values = torch.cat([ties, torch.nextafter(ties, infinity), torch.nextafter(ties, -infinity)])
    values = torch.cat([values, -values])
    assert torch.equal(element.nearest(values), values.to(dtype).float())


@pytest.mark.parametrize("name", ALL)
def test_rounding_is_that_of_a_table(name):
    """Nearest by comparing with all numbers, in double precision; ties to the even code."""
    element = ALL[name]
    values = torch.linspace(-1.2, 1.2, 4001, dtype=torch.float64) * min(element.largest, 40.0)
    distance = (values.abs().clamp_max(element.largest)[:, None] - element.magnitudes).abs()
    nearest = distance == distance.amin(-1, keepdim=True)
    codes = torch.arange(len(element.magnitudes))
    even = torch.where(nearest, codes % 2, 2).argmin(-1)
    expected = element.magnitudes[even] * values.sign()
    assert torch.equal(element.nearest(values), expected)
    assert torch.equal(element.numbers(element.codes(expected)).double(), expected)


@pytest.mark.parametrize(
    ("element", "pairs"),
    [
        (E4M3, {1.0625: 1, 1.1875: 1.25, 1.3125: 1.25, 17: 16, 19: 20, 21: 20}),
        (E2M1, {0.25: 0, 0.75: 1, 1.25: 1, 1.75: 2, 2.5: 2, 3.5: 4, 5: 4, 5.01: 6, 7: 6}),
        (E4M3, {0.9: 0.875, -0.31: -0.3125, 0.12: 0.1171875, 0.05: 0.05078125}),
        (E5M2, {1e9: 57344, -1e9: -57344}),
        (E4M3, {1e4: 448, torch.inf: 448}),
    ],
)
def test_ties_and_ends(element, pairs):
    assert element.nearest(torch.tensor(list(pairs), dtype=torch.float32)).tolist() == [
        float(v) for v in pairs.values()
    ]


def test_not_a_number_stays_one():
    assert E2M1.nearest(torch.tensor([torch.nan, 1.0])).isnan().tolist() == [True, False]


@pytest.mark.parametrize(("value", "neighbours"), [(2.25, {2.0, 3.0}), (-4.5, {-4.0, -6.0}), (5.5, {4.0, 6.0})])
def test_stochastic_rounding_is_right_on_average(value, neighbours):
    draws = E2M1.stochastic(torch.full((200_000,), value), torch.Generator().manual_seed(3))
    assert set(draws.tolist()) == neighbours
    # Three standard errors of the mean of so many draws.
    spread = (max(neighbours) - min(neighbours)) / 2
    assert float(draws.mean()) == pytest.approx(value, abs=3 * spread / 200_000**0.5)
