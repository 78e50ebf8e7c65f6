"""The loss on how far outputs moved: worked numbers, its gradient, and the objective that adds it chunk by chunk."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from thalweg.errors import RecipeError
from thalweg.methods.objectives import CrossEntropy
from thalweg.methods.regularizers.trajectory import TrajectoryObjective, trajectory_loss


def test_worked_example():
    past, now = torch.tensor([5.0, 0.0]), torch.tensor([0.0, 5.0], requires_grad=True)
    loss = trajectory_loss(now, past, temperature=5.0)
    loss.backward()
    assert loss.item() / 25 == pytest.approx(0.462117, abs=1e-6)
    assert loss.item() == pytest.approx(11.552929, abs=1e-5)
    assert 0.3 * loss.item() == pytest.approx(3.465879, abs=1e-5)
    assert now.grad.tolist() == pytest.approx([-2.310586, 2.310586], abs=1e-5)


def test_gradient_is_the_difference_of_the_softened_outputs():
    generator = torch.Generator().manual_seed(0)
    past, now = torch.randn(2, 4, 7, dtype=torch.float64, generator=generator)
    now.requires_grad_()
    trajectory_loss(now, past, temperature=3.0).sum().backward()
    torch.testing.assert_close(now.grad, 3.0 * ((now / 3).softmax(-1) - (past / 3).softmax(-1)))


def test_nothing_where_nothing_has_moved_and_never_below():
    generator = torch.Generator().manual_seed(0)
    now = torch.randn(50, 11, generator=generator).requires_grad_()
    loss = trajectory_loss(now, now)
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros(50))
    assert now.grad.abs().max() < 1e-5
    assert (trajectory_loss(now, torch.randn(50, 11, generator=generator)) > 0).all()


def test_no_gradient_flows_into_the_past():
    past, now = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    trajectory_loss(now, past).sum().backward()
    assert past.grad is None


class Known:
    """A past that is known: fixed logits for every token of the pass, and a note of what was seen."""

    def __init__(self, logits=None):
        self.logits, self.seen = logits, []

    def look_back(self, input_ids, fused):
        def penalty(logits, tokens):
            return 0.5 * trajectory_loss(logits, self.logits[tokens], 2.0)

        return (penalty if self.logits is not None else None), lambda logits, tokens: self.seen.append((tokens, logits))


@pytest.fixture
def case(llama, batch_of):
    model, batch = llama(tied=False).double(), batch_of(0, rows=4)
    batch["targets"][0, :5] = -100
    past = torch.randn(48, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return model, batch, past


def run(model, batch, objective, fused, chunk=7):
    """(losses, gradients) through the logits or through the hidden states."""
    model.zero_grad()
    if fused:
        hidden = model.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state.flatten(0, 1)
        losses = objective.from_hidden(hidden, model.lm_head.weight, batch["targets"].flatten(), chunk)
        losses = losses.view(batch["targets"].shape)
    else:
        losses = objective(model(input_ids=batch["input_ids"], use_cache=False).logits, batch["targets"])
    losses.mean().backward()
    return losses.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("fused", [False, True])
def test_adds_the_penalty_where_the_target_counts(case, fused):
    model, batch, past = case
    known = Known(past)
    objective = TrajectoryObjective(CrossEntropy(), model, known)
    losses, gradients = run(model, batch, objective, fused)
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits.flatten(0, 1)
    targets = batch["targets"].flatten()
    plain = functional.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    penalty = torch.where(targets != -100, 0.5 * trajectory_loss(logits, past, 2.0), 0.0)
    torch.testing.assert_close(losses.flatten(), (plain + penalty).detach())
    model.zero_grad()
    (plain + penalty).mean().backward()
    for one, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-9, atol=1e-12)
    # The mean is over tokens that count, each counted once although its chunk is computed twice.
    assert objective.take_mean() == pytest.approx(penalty.sum().item() / 43, rel=1e-5)
    assert objective.take_mean() is None
    seen = torch.cat([tokens for tokens, _ in known.seen])
    assert torch.equal(seen, torch.arange(48))
    torch.testing.assert_close(torch.cat([each for _, each in known.seen]), logits.detach())


@pytest.mark.parametrize("fused", [False, True])
def test_without_a_penalty_it_is_the_objective_bit_for_bit(case, fused):
    model, batch, _ = case
    plain = run(model, batch, CrossEntropy(), fused)
    known = Known()
    watched = run(model, batch, TrajectoryObjective(CrossEntropy(), model, known), fused)
    assert torch.equal(plain[0], watched[0])
    assert all(torch.equal(one, two) for one, two in zip(plain[1], watched[1], strict=True))
    assert torch.equal(torch.cat([tokens for tokens, _ in known.seen]), torch.arange(48))


def test_passes_that_are_cut_up_are_refused(case):
    model, batch, past = case
    objective = TrajectoryObjective(CrossEntropy(), model, Known(past))
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    with pytest.raises(RecipeError, match="whole passes"):
        objective(logits[:, :5], batch["targets"][:, :5])
