"""z-loss: numbers of the sheet, the wrapped objective and its metric."""

from __future__ import annotations

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.objectives import CrossEntropy
from thalweg.methods.regularizers import ZLossPenalty
from thalweg.methods.regularizers.z_loss_penalty import ZLossObjective, z_loss
from thalweg.models.chunked import chunked_losses


def test_oracle_of_the_sheet():
    logits = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    loss = z_loss(logits)
    loss.backward()
    assert loss.item() == pytest.approx(1e-4 * 3.407606**2, rel=1e-5)
    assert logits.grad.tolist() == pytest.approx([6.1358e-5, 1.66788e-4, 4.53376e-4], rel=1e-4)


def test_objective_adds_the_penalty_where_targets_count():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[0, -100, 4], [1, 2, -100]])
    objective = ZLossObjective(CrossEntropy(), 0.5)
    losses = objective(logits, targets)
    expected = CrossEntropy()(logits, targets) + (targets != -100) * z_loss(logits, 0.5)
    torch.testing.assert_close(losses, expected)
    valid = z_loss(logits, 0.5)[targets != -100]
    assert objective.take_mean() == pytest.approx(valid.mean().item())
    assert objective.take_mean() is None


@pytest.mark.parametrize("weighted", [False, True])
def test_fused_form_is_the_same(weighted):
    torch.manual_seed(0)
    head, hidden, targets = torch.nn.Linear(4, 7, bias=False), torch.randn(2, 5, 4), torch.randint(0, 7, (2, 5))
    targets[1, 2] = -100
    objective = ZLossObjective(CrossEntropy(), 0.5)
    fused = objective.from_hidden(hidden, head.weight, targets, 3, weighted)
    mean = objective.take_mean()
    plain = objective(head(hidden), targets)
    torch.testing.assert_close(fused, plain)
    assert mean == pytest.approx(objective.take_mean())
    ours, theirs = (torch.autograd.grad(losses.mean(), head.weight)[0] for losses in (fused, plain))
    torch.testing.assert_close(ours, theirs)


def test_fused_form_only_where_the_objective_has_one():
    class Hinge(torch.nn.Module):
        def forward(self, logits, targets):
            return logits.logsumexp(-1)

    assert not hasattr(ZLossObjective(Hinge()), "from_hidden")


def test_recomputation_and_evaluation_are_not_counted():
    torch.manual_seed(0)
    head, hidden, targets = torch.nn.Linear(4, 7), torch.randn(10, 4), torch.randint(0, 7, (10,))
    objective = ZLossObjective(CrossEntropy(), 0.5)
    chunked_losses(hidden, head, objective, targets, chunk=3).sum().backward()
    assert objective._count.item() == 10
    with torch.no_grad():
        objective(head(hidden), targets)
    assert objective._count.item() == 10
    assert objective.take_mean() == pytest.approx(z_loss(head(hidden), 0.5).mean().item())


def test_callback_wraps_and_reports(trainer_with):
    trainer = trainer_with(callbacks=[ZLossPenalty(coefficient=0.01)])
    assert isinstance(trainer.objective, ZLossObjective)
    trainer.steps(2)
    first, second = (metrics["z_loss"] for metrics in trainer.metric_history)
    # 37 random logits near 0: logsumexp is near log 37 = 3.61.
    assert first == pytest.approx(0.01 * 3.61**2, rel=0.05)
    assert second != first


def test_it_holds_the_normaliser_down(trainer_with):
    def normaliser(trainer):
        batch = trainer.held_out_batch()
        logits = trainer.model(input_ids=batch["input_ids"], use_cache=False).logits
        return logits.logsumexp(-1).square().mean().item()

    free, held = trainer_with(total_steps=30), trainer_with(total_steps=30, callbacks=[ZLossPenalty(0.5)])
    before = normaliser(free)
    grown, kept = normaliser(free.steps(30)) - before, normaliser(held.steps(30)) - before
    assert grown > 5.0
    assert abs(kept) < 0.2 * grown


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="coefficient"):
        ZLossPenalty(coefficient=-1.0)
