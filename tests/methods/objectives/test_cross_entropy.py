"""Cross-entropy from logits and from hidden states."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from thalweg.methods.objectives import CrossEntropy


def test_numbers_by_hand():
    losses = CrossEntropy()(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2]))
    assert losses.item() == pytest.approx(3.407606 - 3.0, abs=1e-6)
    uniform = CrossEntropy()(torch.zeros(2, 7), torch.tensor([3, -100]))
    assert uniform.tolist() == pytest.approx([math.log(7), 0.0])


@pytest.mark.parametrize("weighted", [False, True])
def test_from_hidden_is_the_same_in_shape_and_number(weighted):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 6, 4, generator=generator)
    weight = torch.randn(9, 4, generator=generator)
    targets = torch.randint(0, 9, (2, 6), generator=generator)
    losses = CrossEntropy.from_hidden(hidden, weight, targets, 5, weighted)
    expected = CrossEntropy()(hidden @ weight.T, targets)
    assert losses.shape == (2, 6)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    assert losses.mean().item() == pytest.approx(
        F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten()).item()
    )
