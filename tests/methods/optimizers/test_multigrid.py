"""Multigrid on texts: the shapes, the tokens they keep, and what the clock is told."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.optimizers import Multigrid
from thalweg.methods.optimizers.multigrid import cut, fitting, pieces_at, pieces_in_step
from thalweg.models.ladder import flops_per_token


def test_long_cycle_has_equal_quarters_and_a_tail():
    pieces = [pieces_at(step / 160) for step in range(160)]
    assert pieces == [8] * 30 + [4] * 30 + [2] * 30 + [1] * 70
    assert [pieces_at(step / 80, cycles=2, final=0.0) for step in range(80)] == (
        [8] * 10 + [4] * 10 + [2] * 10 + [1] * 10
    ) * 2
    assert pieces_at(1.0) == 1


def test_short_cycle_never_has_longer_windows_than_the_long_one():
    assert [pieces_in_step(step, 1) for step in range(6)] == [4, 2, 1] * 2
    assert [pieces_in_step(step, 2) for step in range(3)] == [4, 2, 2]
    assert [pieces_in_step(step, 8) for step in range(3)] == [8, 8, 8]


def test_windows_that_cannot_be_cut_evenly_get_fewer_pieces():
    assert [fitting(8, length) for length in (512, 12, 7, 9, 1)] == [8, 6, 7, 3, 1]


def test_cutting_keeps_every_token_and_its_target(batch_of):
    batch = batch_of(0, rows=3)
    small = cut(batch, 4)
    assert small["input_ids"].shape == (12, 3)
    for key, value in batch.items():
        assert torch.equal(small[key].flatten(), value.flatten())
    assert torch.equal(small["targets"][1, :-1], small["input_ids"][1, 1:])
    assert (small["targets"] != -100).sum() == (batch["targets"] != -100).sum()


def shapes_of(trainer, steps):
    """What the model was given in the coming steps."""
    seen = []
    handle = trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    trainer.steps(steps)
    handle.remove()
    return seen


def test_shapes_in_a_run(trainer_with):
    """Sixteen windows of twelve tokens; eight pieces do not divide twelve, six do."""
    trainer = trainer_with(total_steps=16, callbacks=[Multigrid(short=False)])
    assert shapes_of(trainer, 16) == [(96, 2)] * 3 + [(64, 3)] * 3 + [(32, 6)] * 3 + [(16, 12)] * 7
    assert [metrics["sequence_length"] for metrics in trainer.metric_history] == [2] * 3 + [3] * 3 + [6] * 3 + [12] * 7


def test_short_cycle_in_a_run(trainer_with):
    trainer = trainer_with(total_steps=6, callbacks=[Multigrid(long=False, short=True)])
    assert shapes_of(trainer, 6) == [(64, 3), (32, 6), (16, 12)] * 2


def test_a_resumed_run_goes_on_with_the_right_shape(trainer_with):
    first = trainer_with(total_steps=16, callbacks=[Multigrid(short=True)]).steps(7)
    # As the trainer does it: state and clock are there before `setup`.
    second = trainer_with(total_steps=16)
    second.clock, second.callbacks = first.clock, [Multigrid(short=True)]
    second.callbacks[0].load_state_dict(first.callbacks[0].state_dict())
    second.call("setup")
    assert second.step_flops == first.step_flops < 1.0
    assert second.callbacks[0].state_dict() == {"pieces": 2, "rows": 2}


def test_nothing_stays_changed_after_a_step(trainer_with):
    trainer = trainer_with(callbacks=[Multigrid(short=False, lr_exponent=1.0)])
    callback = trainer.callbacks[0]
    callback.batch(trainer, {"targets": torch.zeros(16, 12)})
    assert trainer.plan["micro_batch"] == 96
    callback.raw_gradients(trainer, {})
    assert trainer.lr_scale == 6.0
    callback.skipped(trainer)
    assert trainer.plan["micro_batch"] == 16
    assert trainer.lr_scale == 1.0


def test_rate_follows_the_long_cycle_alone(trainer_with):
    trainer = trainer_with(callbacks=[Multigrid(long=False, short=True, lr_exponent=1.0)])
    trainer.callbacks[0].batch(trainer, {"targets": torch.zeros(16, 12)})
    trainer.callbacks[0].raw_gradients(trainer, {})
    assert trainer.lr_scale == 1.0


@pytest.fixture
def lines(small, tmp_path):
    """Step lines and the size of the vocabulary of a run through the whole of Thalweg."""

    def run(arm, budget, **changes):
        from thalweg.sessions.train import train

        train(small(arm, budget=budget, training__precision="float32", **changes), tmp_path, quiet=True, show=False)
        written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        vocabulary = json.loads((tmp_path / "plan.json").read_text())["chosen"]["vocab_size"]
        return [line for line in written if line["event"] == "step"], vocabulary

    return run


def test_the_clock_counts_what_is_computed(lines):
    """Tokens as ever; flops by the length of the windows. Half the rate's exponent shows in the logged rate."""
    from thalweg.models.ladder import nearest

    steps, vocabulary = lines("adamw+constant:warmup=0.0+multigrid:short=false,lr_exponent=0.5", "16 steps")
    lengths = [4] * 3 + [8] * 3 + [16] * 3 + [32] * 7
    assert [line["sequence_length"] for line in steps] == lengths
    assert [line["tokens"] for line in steps] == [256 * (step + 1) for step in range(16)]
    costs = [256 * flops_per_token(nearest("0.2M"), vocabulary, length) for length in lengths]
    counted = [late["flops"] - early for late, early in zip(steps, [0.0, *(s["flops"] for s in steps)], strict=False)]
    assert counted == pytest.approx(costs, rel=1e-6)
    assert [line["lr"] for line in steps] == pytest.approx([0.005 * (32 / length) ** 0.5 for length in lengths])
    per_token = [line["mfu"] / line["tokens_per_second"] for line in steps]
    assert per_token[0] / per_token[-1] == pytest.approx(costs[0] / costs[-1], rel=0.05)


def test_a_flops_budget_buys_more_steps_and_is_not_overspent(lines):
    from thalweg.models.ladder import nearest

    # The tokenizer has at most 512 words, so this may be a little more than forty steps.
    whole = 256 * flops_per_token(nearest("0.2M"), 512, 32)
    steps, _ = lines("adamw+linear+multigrid:short=false,final=0.0", f"{40 * whole} flops")
    assert len(steps) > 40
    assert 39 * whole < steps[-1]["flops"] <= 40 * whole * (1 + 1e-9)
    assert steps[-1]["progress"] == 1.0
    lengths = Counter(line["sequence_length"] for line in steps)
    assert max(lengths.values()) - min(lengths.values()) <= 2


def test_mistakes_are_named():
    for options in ({"cycles": 0}, {"final": 1.0}, {"lr_exponent": -1.0}):
        with pytest.raises(RecipeError, match=next(iter(options))):
            Multigrid(**options)
