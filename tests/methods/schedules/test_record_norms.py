"""What record_norms writes is the norm of the raw gradient, and it changes nothing."""

from __future__ import annotations

import pytest
import torch

from thalweg.methods.schedules import RecordNorms


class Spoil:
    """Does to the gradient what clipping and noise do: happens after the raw gradient was seen."""

    def gradients(self, trainer):
        for parameter in trainer.parameters:
            parameter.grad.mul_(0.001)


class Look:
    def raw_gradients(self, trainer, batch):
        self.seen = sum(parameter.grad.abs().sum().item() for parameter in trainer.parameters)

    def step(self, trainer):
        trainer.metrics["seen"] = self.seen


def test_the_raw_l1_norm_is_written(trainer_with):
    trainer = trainer_with(callbacks=[RecordNorms(), Spoil(), Look()]).steps(3)
    for metrics in trainer.metric_history:
        assert metrics["grad_l1"] == pytest.approx(metrics["seen"], rel=1e-5)
        assert metrics["grad_l1"] > 1.0


def test_training_is_the_same_without(trainer_with):
    with_it, without = trainer_with(callbacks=[RecordNorms()]).steps(4), trainer_with().steps(4)
    assert with_it.loss_history == without.loss_history
    assert all(torch.equal(one, two) for one, two in zip(with_it.parameters, without.parameters, strict=True))
