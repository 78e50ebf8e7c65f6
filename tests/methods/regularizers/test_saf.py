"""SAF's memory under any order of windows, what of the KL its few kept outputs hold, and a run that sees text again."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.objectives import CrossEntropy
from thalweg.methods.regularizers import SAF
from thalweg.methods.regularizers.saf import OutputMemory, largest_outputs, partial_trajectory_loss, window_keys
from thalweg.methods.regularizers.trajectory import trajectory_loss
from thalweg.runs import Run
from thalweg.sessions.train import train


def test_with_all_outputs_kept_it_is_the_whole_loss():
    generator = torch.Generator().manual_seed(0)
    past, now = torch.randn(2, 20, 9, dtype=torch.float64, generator=generator)
    indices, kept = largest_outputs(past, 9, 2.0)
    assert kept.dtype == torch.float16
    loss = partial_trajectory_loss(now, indices, kept, 2.0)
    torch.testing.assert_close(loss, trajectory_loss(now, past, 2.0), rtol=0.02, atol=0.005)


def test_worked_example():
    indices, kept = largest_outputs(torch.tensor([[5.0, 0.0]]), 2, 5.0)
    loss = partial_trajectory_loss(torch.tensor([[0.0, 5.0]]), indices, kept, 5.0)
    assert loss.item() == pytest.approx(11.552929, rel=1e-3)


def test_keeping_fewer_never_gives_more():
    """Of a coarser look at two distributions the divergence is smaller: 8 kept of 40 < 20 kept < all."""
    generator = torch.Generator().manual_seed(0)
    past, now = 3.0 * torch.randn(2, 30, 40, dtype=torch.float64, generator=generator)
    losses = [partial_trajectory_loss(now, *largest_outputs(past, top, 1.0), 1.0) for top in (8, 20, 40)]
    assert (losses[0] < losses[1] + 0.01).all()
    assert (losses[1] < losses[2] + 0.01).all()
    assert (losses[0] > 0.0).all()


def test_nothing_where_nothing_has_moved():
    now = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = partial_trajectory_loss(now, *largest_outputs(now.detach(), 8, 1.0), 1.0)
    loss.sum().backward()
    assert loss.abs().max() < 1e-5
    # The gradient is the rounding of float16.
    assert now.grad.abs().max() < 2e-3


def test_gradient_of_the_kept_is_their_difference():
    generator = torch.Generator().manual_seed(0)
    past, now = torch.randn(2, 5, 12, dtype=torch.float64, generator=generator)
    now.requires_grad_()
    indices, kept = largest_outputs(past, 3, 2.0)
    partial_trajectory_loss(now, indices, kept, 2.0).sum().backward()
    q, p = (now / 2).softmax(-1).detach(), kept.double().exp()
    expected = q * ((1 - p.sum(-1, keepdim=True)) / (1 - q.gather(-1, indices.long()).sum(-1, keepdim=True)))
    expected = 2.0 * (q - expected.scatter(-1, indices.long(), p))
    torch.testing.assert_close(now.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("back", [1, 3])
def test_what_is_recalled_was_kept_that_many_visits_ago_under_any_order(back):
    memory, order = OutputMemory(back), random.Random(0)
    keys = [order.getrandbits(63) for _ in range(20)]
    for epoch in range(7):
        order.shuffle(keys)
        for start in range(0, 20, 4):
            some = keys[start : start + 4]
            # What is kept says of which window and when.
            stamp = torch.tensor([[key % 1000, epoch] for key in some]).view(4, 1, 2)
            found = memory.recall(some, torch.device("cpu"))
            if epoch < back:
                assert found is None
            else:
                expected = torch.tensor([[key % 1000, epoch - back] for key in some]).view(4, 1, 2)
                assert torch.equal(found[0], expected.int())
                assert torch.equal(found[1], expected.half())
                assert found[2].all()
            memory.keep(some, stamp.int(), stamp.half())
        # Through a checkpoint and on.
        state, memory = memory.state_dict(), OutputMemory(back)
        memory.load_state_dict(state)
    assert state["indices"].shape == (20, back, 1, 2)


def test_bytes_a_token_of_text():
    memory = OutputMemory(1)
    memory.keep([1, 2], torch.zeros(2, 100, 8, dtype=torch.int32), torch.zeros(2, 100, 8, dtype=torch.float16))
    state = memory.state_dict()
    assert state["indices"].nbytes + state["log_probabilities"].nbytes == 48 * 200


def test_windows_of_which_some_are_new():
    memory = OutputMemory(1)
    ones = torch.ones(2, 3, 4)
    memory.keep([5, 6], ones.int(), ones.half())
    assert memory.recall([7, 8], torch.device("cpu")) is None
    assert memory.recall([7, 6], torch.device("cpu"))[2].tolist() == [False, True]


def test_keys_tell_windows_apart():
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, 50, (2000, 16), generator=generator)
    keys = window_keys(windows)
    assert len(set(keys.tolist())) == 2000
    assert torch.equal(keys, window_keys(windows.clone()))
    assert not torch.equal(keys, window_keys(windows.flip(1)))
    assert window_keys(torch.zeros(1, 4, dtype=torch.int64)).item() != 0


def passes(saf, model, batch, taken=True, trainer=None):
    """One step's forward pass through the wrapped objective; gives (losses, the trainer)."""
    trainer = trainer or SimpleNamespace(model=model, objective=CrossEntropy(), metrics={}, world_size=1)
    if saf._wrapped is None:
        saf.setup(trainer)
    trainer.clock = SimpleNamespace(progress=0.5)
    saf.batch(trainer, batch)
    losses = trainer.objective(model(input_ids=batch["input_ids"], use_cache=False).logits, batch["targets"])
    (saf.step if taken else saf.skipped)(trainer)
    return losses.detach(), trainer


def test_the_second_visit_is_held_near_the_first(llama, batch_of):
    model, batch = llama(tied=False), batch_of(0, rows=4)
    saf = SAF(coefficient=0.6, temperature=2.0, top=37)
    plain, trainer = passes(saf, model, batch)
    first = model(input_ids=batch["input_ids"], use_cache=False).logits.detach()
    assert trainer.metrics == {}
    with torch.no_grad():
        model.lm_head.weight.mul_(8.0)
    again = CrossEntropy()(8.0 * first, batch["targets"])
    losses, _ = passes(saf, model, batch, trainer=trainer)
    expected = 0.6 * trajectory_loss(8.0 * first, first, 2.0)
    assert expected.mean() > 0.01
    torch.testing.assert_close(losses, again + expected, rtol=1e-3, atol=2e-3)
    assert trainer.metrics["saf"] == pytest.approx(expected.mean().item(), rel=0.02)
    # What is compared with next is what was said now.
    losses, _ = passes(saf, model, batch, trainer=trainer)
    torch.testing.assert_close(losses, again, rtol=1e-3, atol=2e-3)
    assert not torch.equal(plain, again)


def test_what_a_skipped_step_said_is_forgotten(llama, batch_of):
    saf, model = SAF(), llama()
    _, trainer = passes(saf, model, batch_of(0), taken=False)
    assert saf.state_dict() == {}
    passes(saf, model, batch_of(0), trainer=trainer)
    assert saf.memory.visits == [1] * 16


def test_looks_without_gradients_and_second_looks_are_not_visits(llama, batch_of):
    saf, model, batch = SAF(), llama(), batch_of(0)
    _, trainer = passes(saf, model, batch, taken=False)
    for grad in (False, True, True):
        with torch.set_grad_enabled(grad):
            trainer.objective(model(input_ids=batch["input_ids"], use_cache=False).logits, batch["targets"])
    saf.step(trainer)
    assert saf.memory.visits == [1] * 16


@pytest.mark.parametrize("options", [{"top": 0}, {"back": 0}, {"coefficient": -0.1}, {"temperature": 0.0}])
def test_mistakes_are_named(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        SAF(**options)


def test_more_kept_than_there_is():
    with pytest.raises(RecipeError, match="more than the vocabulary"):
        largest_outputs(torch.zeros(2, 5), 6, 1.0)


def test_in_a_run_it_begins_with_the_second_epoch(small, tmp_path):
    """Through hidden states, chunk by chunk, with several passes a step."""
    told = []
    for arm in ("adamw+linear", "adamw+linear+saf:start=0.0"):
        changes = {"training__micro_batch": 2, "training__precision": "float32", "data__held_out": 0.95}
        folder = train(small(arm, budget="1.5 epochs", **changes), tmp_path / arm, quiet=True, show=False).folder
        told.append(list(Run.open(folder).metrics("step")))
    plain, saf = ([line["loss"] for line in lines] for lines in told)
    began = next(index for index, line in enumerate(told[1]) if "saf" in line)
    # The step in which the second epoch begins is the first with something to recall.
    assert began == pytest.approx(len(plain) * 2 / 3, abs=1)
    assert saf[:began] == plain[:began]
    assert all(line["saf"] > 0 for line in told[1][began:])
    assert saf[-1] > plain[-1]
