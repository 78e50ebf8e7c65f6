"""What is remembered comes back within half a step of its row."""

from __future__ import annotations

import pytest
import torch

from thalweg.methods.optimizers import DCTAdamW
from thalweg.methods.optimizers.error_memory import LEVELS, recall, remember


def memory(value, form):
    parameter = torch.nn.Parameter(torch.zeros_like(value))
    optimizer = DCTAdamW([parameter], lr=0.1)
    assert torch.equal(recall(optimizer, [parameter], form)[0], torch.zeros_like(value))
    remember(optimizer, [parameter], [value], form)
    return recall(optimizer, [parameter], form)[0], optimizer.state[parameter]


@pytest.mark.parametrize("form", ["8bit", "4bit"])
@pytest.mark.parametrize("shape", [(5, 8), (5, 7), (2, 3, 5), (4, 1)])
def test_within_half_a_step(form, shape):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 2, shape[-2])[:, None]
    found, state = memory(value, form)
    step = (value.amax(-1, keepdim=True) - value.amin(-1, keepdim=True)) / LEVELS[form]
    assert ((found - value).abs() <= 0.5001 * step + 1e-6 * value.abs()).all()
    assert state["error"].dtype == torch.uint8
    assert state["error"].shape[-1] == (shape[-1] if form == "8bit" else (shape[-1] + 1) // 2)


@pytest.mark.parametrize("form", ["8bit", "4bit"])
def test_numbers_on_the_grid_come_back_exactly(form):
    value = torch.stack([torch.arange(LEVELS[form] + 1.0), 3.0 - 0.5 * torch.arange(LEVELS[form] + 1.0)])
    found, _ = memory(value, form)
    torch.testing.assert_close(found, value, atol=0, rtol=1e-6)


@pytest.mark.parametrize("form", ["exact", "8bit", "4bit"])
def test_rows_of_one_value(form):
    value = torch.tensor([[0.0, 0.0, 0.0], [-2.5, -2.5, -2.5]])
    assert torch.equal(memory(value, form)[0], value)
