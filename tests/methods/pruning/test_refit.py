"""The best weights for a mask: the numbers of the sheet, and least squares itself."""

from __future__ import annotations

import pytest
import torch

from thalweg.errors import ModelError
from thalweg.methods.pruning import refit as module
from thalweg.methods.pruning.refit import refit

MASK = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]]).bool()


def test_the_numbers_of_the_sheet(sheet):
    found = refit(sheet.weight, MASK, sheet.damped)
    assert found.flatten().tolist() == pytest.approx([0, -1.0371, 0, 1.2626, 1.0894, 0, -0.5477, 0], abs=5e-5)
    change = found - sheet.weight
    assert ((change @ sheet.damped) * change).sum(1).tolist() == pytest.approx([1.1481, 0.6281], abs=5e-5)


@pytest.mark.parametrize("at_once", [1, 10_000_000])
def test_it_is_least_squares_on_the_inputs(random_layer, monkeypatch, at_once):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    weight, _ = random_layer()
    inputs = torch.randn(100, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    keep = torch.rand(16, 24, generator=torch.Generator().manual_seed(2)) > 0.6
    found = refit(weight, keep, inputs.T @ inputs / 100)
    for row in range(16):
        kept = keep[row]
        answer = torch.linalg.lstsq(inputs[:, kept], inputs @ weight[row]).solution
        torch.testing.assert_close(found[row, kept], answer)
        assert bool((found[row, ~kept] == 0).all())


def test_nothing_pruned_and_everything_pruned(random_layer):
    weight, hessian = random_layer()
    all_of_them = torch.ones_like(weight, dtype=torch.bool)
    torch.testing.assert_close(refit(weight, all_of_them, hessian), weight, rtol=1e-8, atol=1e-8)
    assert bool((refit(weight, ~all_of_them, hessian) == 0).all())
    assert refit(weight.float(), all_of_them, hessian.float()).dtype == torch.float32


def test_a_singular_hessian_is_told_of():
    hessian = torch.diag(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    with pytest.raises(ModelError, match="singular"):
        refit(torch.ones(2, 4), MASK, hessian)
