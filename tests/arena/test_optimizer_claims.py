"""The claims of the optimizers that are no races: short runs of them are deterministic, and tell all numbers."""

from __future__ import annotations

import json

import pytest
import torch

from thalweg.arena.claims import level_cycle, small_text, warm_starting


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "short",
    [
        lambda seed: warm_starting.warm_starting(seed, examples=100, draws=2, rates=(0.004,)),
        lambda seed: level_cycle.level_cycle(seed, steps=20, draws=1),
    ],
    ids=["warm_starting", "level_cycle"],
)
def test_short_runs_are_deterministic(short, monkeypatch):
    monkeypatch.setattr(warm_starting, "UNSEEN", 500)
    monkeypatch.setattr(small_text, "HELD_OUT", 5000)
    monkeypatch.setattr(level_cycle, "HELD_OUT", 4)
    found = short(0)
    assert found == short(0)
    assert found != short(1)
    json.dumps(dict(found.numbers), allow_nan=False)
    assert len(found.sentence) > 100


def test_no_context_is_learnt_and_asked_for():
    (inputs, _), (unseen, _) = warm_starting._drawn(0, 300)
    rows = torch.cat([inputs, unseen])
    assert len(torch.unique(rows, dim=0)) == len(rows) == 300 + warm_starting.UNSEEN


def test_a_cycle_spends_the_flops_of_training_as_usual(monkeypatch):
    """Steps of every model, weighed with what they cost."""
    from thalweg.models.ladder import flops_per_token

    spent = []
    real = level_cycle._Course.train

    def train(self, model, rates):
        spent.append(len(rates) * flops_per_token(model, context=level_cycle.CONTEXT))
        real(self, model, rates[:1])

    monkeypatch.setattr(level_cycle._Course, "train", train)
    split, held = small_text.code()
    for arm in (
        lambda: level_cycle._cycle(0, split, held, 100, 0.01),
        lambda: level_cycle._plain(0, split, held, 100, 0.01, restart=True),
    ):
        spent.clear()
        arm()
        whole = 100 * flops_per_token(level_cycle._model(0), context=level_cycle.CONTEXT)
        assert sum(spent) == pytest.approx(whole, rel=0.02)
        assert sum(spent) <= whole * (1 + 1e-9)
