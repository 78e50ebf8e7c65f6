"""AdamW against the textbook and against torch."""

from __future__ import annotations

import pytest
import torch

from thalweg.methods.optimizers import AdamW
from thalweg.methods.optimizers.base import can_fuse, materialised


def test_equals_the_textbook():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = AdamW([parameter], lr=0.02, weight_decay=0.3, beta1=0.8, beta2=0.9, eps=1e-3)
    first = second = torch.zeros_like(weight)
    for step in range(1, 6):
        gradient = torch.randn(4, 3, dtype=torch.float64, generator=generator)
        parameter.grad = gradient.clone()
        optimizer.step()
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        direction = (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-3)
        weight = weight * (1 - 0.02 * 0.3) - 0.02 * direction
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-12, atol=1e-12)


def test_independent_decay_of_the_stability_sheet():
    """theta = 2, direction 0.5, lambda 1e-4, lr 0.01 at half of the schedule: 1.9974."""
    parameter = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    # g / (|g| + eps) = 0.5 for g = eps; torch multiplies the decay by the rate, so it is lambda / peak.
    optimizer = AdamW([parameter], lr=0.005, weight_decay=1e-4 / 0.01, eps=1.0)
    parameter.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    assert parameter.item() == pytest.approx(2 - 0.5 * (0.01 * 0.5 + 1e-4 * 2), abs=1e-12)
    assert parameter.item() == pytest.approx(1.9974, abs=1e-12)


@pytest.mark.parametrize(
    ("gradient", "eps", "share"), [(1e-6, 1e-8, 0.990), (1e-8, 1e-8, 0.5), (1e-9, 1e-8, 0.0909), (1e-9, 1e-15, 1.0)]
)
def test_eps_shrinks_tiny_updates(gradient, eps, share):
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = AdamW([parameter], lr=1.0, weight_decay=0.0, eps=eps)
    parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    assert -parameter.item() == pytest.approx(share, abs=1e-3)


def test_is_fused():
    optimizer = AdamW([torch.nn.Parameter(torch.ones(2))])
    assert optimizer.param_groups[0]["fused"] is True
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_falls_back_where_the_fused_kernel_does_not_reach():
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    assert not can_fuse(materialised([{"params": parameter}]))
    optimizer = AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert parameter.isfinite().all()
    assert parameter[0].real.item() < 1.0
