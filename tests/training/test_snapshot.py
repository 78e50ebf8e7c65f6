"""Going back in memory: what follows a restore is, bit for bit, what would have followed the snapshot."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from thalweg.runs import Run
from thalweg.sessions import train as session
from thalweg.training.checkpoints import decode, encode

ARMS = ["adamw+linear", "muon+wsd+gradient_noise+z_loss_penalty+matrix_nuclear_norm:every=2+dynamic_loss"]


class Detour:
    """After step `at`, trains `length` steps at five times the rate and with drawn numbers, then goes back.

    With `rewind` the clock goes back too, so that the run meets the same batches again.
    """

    def __init__(self, at, length, rewind=True, again=False):
        self.at, self.length, self.rewind, self.again = at, length, rewind, again
        self.taken = None

    def step(self, trainer):
        if self.taken is None and trainer.clock.step == self.at:
            self.taken = trainer.snapshot()
            self.clock, self.norm = trainer.clock.state_dict(), weights_sum(trainer)
            trainer.lr_scale = 5.0
        elif self.taken is not None and trainer.clock.step == self.at + self.length and self.length:
            assert weights_sum(trainer) != self.norm
            torch.rand(7)
            self.spent = trainer.clock.step, trainer.clock.tokens, trainer.clock.flops
            trainer.restore(self.taken)
            assert weights_sum(trainer) == self.norm
            assert (trainer.clock.step, trainer.clock.tokens, trainer.clock.flops) == self.spent
            if self.rewind:
                trainer.clock.load_state_dict(self.clock)
            trainer.lr_scale = 5.0 if self.again else 1.0
            if not self.again:
                self.length = 0
            self.again = False


def weights_sum(trainer):
    whole = (p.full_tensor() if hasattr(p, "full_tensor") else p for p in trainer.parameters)
    return sum(float(parameter.detach().double().sum()) for parameter in whole)


@pytest.fixture
def with_detour(on_assembly):
    def arrange(detour):
        on_assembly(lambda trainer: trainer.callbacks.append(detour))
        return detour

    return arrange


def finished(run):
    weights = load_file(run.checkpoint / "model.safetensors")
    return weights, [(line["step"], line["loss"]) for line in Run.open(run.folder).metrics("step")]


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("again", [False, True])
def test_after_a_restore_the_run_is_the_untouched_one(small, tmp_path, with_detour, arm, again):
    recipe = small(arm, training__checkpoint_every="100 steps", training__evaluate_every="100 steps")
    weights, losses = finished(session.train(recipe, tmp_path / "untouched", quiet=True, show=False))
    with_detour(Detour(at=4, length=3, again=again))
    detoured, told = finished(session.train(recipe, tmp_path / "detour", quiet=True, show=False))
    trips = 2 if again else 1
    assert [step for step, _ in told] == [1, 2, 3, 4, *[5, 6, 7] * trips, *range(5, 13)]
    assert told[:4] + told[4 + 3 * trips :] == losses
    assert told[4:7] != losses[4:7]
    # Detours are alike, too: using a snapshot does not wear it out.
    assert told[4:7] == told[7:10] or not again
    assert all(torch.equal(weights[name], detoured[name]) for name in weights)


def test_sharded_parameters_come_back_too(small, tmp_path, with_detour):
    recipe = small(training__shard=True, training__checkpoint_every="100 steps", training__evaluate_every="100 steps")
    weights, losses = finished(session.train(recipe, tmp_path / "untouched", quiet=True, show=False))
    with_detour(Detour(at=4, length=3))
    detoured, told = finished(session.train(recipe, tmp_path / "detour", quiet=True, show=False))
    assert told[:4] + told[7:] == losses
    assert all(torch.equal(weights[name], detoured[name]) for name in weights)


def test_what_was_spent_stays_spent(small, tmp_path, with_detour):
    detour = with_detour(Detour(at=4, length=3, rewind=False))
    run = session.train(small(), tmp_path / "run", quiet=True, show=False)
    assert detour.spent[0] == 7
    assert run.step == 12
    assert [step for step, _ in finished(run)[1]] == list(range(1, 13))


def test_a_snapshot_can_be_stored(small, tmp_path, with_detour):
    detour = with_detour(Detour(at=4, length=3))
    session.train(small(ARMS[1]), tmp_path / "run", quiet=True, show=False)
    tensors = {}
    back = decode(json.loads(json.dumps(encode(detour.taken, tensors))), tensors)
    assert set(back) == {"weights", "optimizer", "parts", "random"}
    assert set(back["parts"]) >= {"reweighting", "callback/gradient_noise"}
    assert not any("Checkpointing" in name or "schedule" in name for name in back["parts"])
    for name, tensor in detour.taken["weights"].items():
        assert torch.equal(tensor, back["weights"][name])
