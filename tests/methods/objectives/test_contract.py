"""The contract that every objective of the catalogue keeps."""

from __future__ import annotations

import pytest
import torch

from thalweg import catalog

OBJECTIVES = [name for name, card in catalog.load().items() if card.slot == "objective"]
pytestmark = pytest.mark.parametrize("name", OBJECTIVES)


def logits_and_targets():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 11, generator=generator)
    targets = torch.randint(0, 11, (3, 5), generator=generator)
    targets[1] = -100
    targets[2, 3] = -100
    return logits, targets


def test_losses_have_targets_shape_and_ignore(name):
    logits, targets = logits_and_targets()
    logits.requires_grad_()
    losses = catalog.resolve(name)()(logits, targets)
    assert losses.shape == targets.shape
    assert losses.dtype == torch.float32
    assert not losses[targets == -100].any()
    losses.sum().backward()
    assert not logits.grad[targets == -100].any()
    assert logits.grad[targets != -100].abs().sum() > 0


def test_is_a_module_and_tokens_do_not_depend_on_each_other(name):
    objective = catalog.resolve(name)()
    assert isinstance(objective, torch.nn.Module)
    logits, targets = logits_and_targets()
    flat = objective(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(flat.view(3, 5), objective(logits, targets))
    torch.testing.assert_close(objective(logits[:, 1:2], targets[:, 1:2]), objective(logits, targets)[:, 1:2])


def test_low_precision_logits_are_summed_in_float32(name):
    logits, targets = logits_and_targets()
    rough = logits.bfloat16()
    losses = catalog.resolve(name)()(rough, targets)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, catalog.resolve(name)()(rough.float(), targets))
