"""Any objective in chunks equals itself in one piece."""

from __future__ import annotations

import pytest
import torch

from thalweg.errors import TrainingError
from thalweg.methods.objectives import CrossEntropy
from thalweg.methods.regularizers.z_loss_penalty import ZLossObjective
from thalweg.models.chunked import chunked_losses


@pytest.mark.parametrize("chunk", [1, 4, 12, 100])
@pytest.mark.parametrize("objective", [CrossEntropy(), ZLossObjective(CrossEntropy(), 0.1)])
def test_values_and_gradients(chunk, objective):
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 9)
    hidden = torch.randn(3, 4, 5, requires_grad=True)
    targets = torch.randint(0, 9, (3, 4))
    targets[0, 1] = -100
    inputs = (hidden, head.weight, head.bias)
    coefficients = torch.rand(3, 4)
    losses = chunked_losses(hidden, head, objective, targets, chunk)
    plain = objective(head(hidden), targets)
    assert losses.shape == targets.shape
    torch.testing.assert_close(losses, plain)
    ours = torch.autograd.grad((losses * coefficients).sum(), inputs)
    theirs = torch.autograd.grad((plain * coefficients).sum(), inputs)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)
    with torch.no_grad():
        torch.testing.assert_close(chunked_losses(hidden, head, objective, targets, chunk), plain)


def test_chunk_must_hold_a_token():
    with pytest.raises(TrainingError, match="chunk"):
        chunked_losses(torch.ones(2, 3), torch.nn.Linear(3, 4), CrossEntropy(), torch.zeros(2, dtype=torch.long), 0)
