"""Newton-Schulz against singular values computed exactly and the numbers of the Muon sheet."""

from __future__ import annotations

import pytest
import torch

from thalweg.methods.optimizers import newton_schulz as module
from thalweg.methods.optimizers.newton_schulz import COEFFICIENTS, newton_schulz, newton_schulz_list, working_dtype


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mapped(values, steps=5):
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    return values


def test_oracles_of_the_sheet():
    diagonal = newton_schulz(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)))
    expected = torch.diag(torch.tensor([0.753033, 1.133706], dtype=torch.float64))
    torch.testing.assert_close(diagonal, expected, atol=1e-6, rtol=0)
    values = torch.linalg.svdvals(newton_schulz(torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64)))
    assert values.tolist() == pytest.approx([1.133706, 0.753033], abs=1e-6)
    one = torch.ones(1, 1, dtype=torch.float64)
    assert newton_schulz(one, steps=1).item() == pytest.approx(0.7010, abs=1e-9)
    assert newton_schulz(one).item() == pytest.approx(mapped(one).item(), abs=1e-12)
    tiny = newton_schulz(torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64)))[1, 1].item()
    assert tiny / 1e-9 == pytest.approx(484.9, abs=0.1)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (1, 6), (6, 1)])
def test_singular_vectors_stay_and_values_follow_the_polynomial(shape):
    matrix = random(*shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    expected = left @ torch.diag(mapped(values / values.norm())) @ right
    torch.testing.assert_close(newton_schulz(matrix), expected, atol=1e-10, rtol=0)


def test_range_after_five_steps():
    starts = torch.linspace(0.01, 1.0, 20001, dtype=torch.float64)
    ends = mapped(starts)
    assert ends.min().item() == pytest.approx(0.6818, abs=1e-3)
    assert ends.max().item() == pytest.approx(1.1343, abs=1e-3)


def test_scale_does_not_matter_and_zero_stays_zero():
    matrix = random(4, 6).float()
    for factor in (1e-12, 1e-3, 1e6):
        torch.testing.assert_close(
            newton_schulz(matrix * factor, dtype="float32"), newton_schulz(matrix, dtype="float32")
        )
    assert torch.equal(newton_schulz(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_rotations_pass_through():
    matrix = random(5, 5)
    left, _ = torch.linalg.qr(random(5, 5, seed=1))
    right, _ = torch.linalg.qr(random(5, 5, seed=2))
    torch.testing.assert_close(newton_schulz(left @ matrix @ right), left @ newton_schulz(matrix) @ right)


def test_list_equals_one_by_one_in_any_mixture(monkeypatch):
    shapes = [(4, 6), (3, 3), (6, 4), (4, 6), (3, 3), (2, 9), (6, 4)]
    matrices = [random(*shape, seed=index) for index, shape in enumerate(shapes)]
    for elements in (1 << 26, 30, 1):  # from one batch a shape down to one matrix a batch
        monkeypatch.setitem(module.BATCH_ELEMENTS, "cpu", elements)
        for matrix, factor in zip(matrices, newton_schulz_list(matrices), strict=True):
            assert factor.shape == matrix.shape
            torch.testing.assert_close(factor, newton_schulz(matrix), atol=1e-12, rtol=0)


def test_leading_dimensions_are_a_batch():
    matrices = random(2, 3, 5, 4)
    result = newton_schulz(matrices)
    torch.testing.assert_close(result[1, 2], newton_schulz(matrices[1, 2]))


def test_bfloat16_is_close_and_the_type_comes_back():
    matrix = random(32, 48).float()
    rough, exact = newton_schulz(matrix, dtype="bfloat16"), newton_schulz(matrix, dtype="float32")
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.05 * exact.norm()
    assert working_dtype(random(1, 1)) == torch.float64
    assert working_dtype(matrix, "float32") == torch.float32
