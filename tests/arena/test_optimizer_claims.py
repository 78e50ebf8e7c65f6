"""The claims on optimizers that are no races: short runs of them are deterministic, and their judgement is right."""

from __future__ import annotations

import json

import pytest
import torch

from thalweg.arena.claims import gradient_normalized_lines, level_cycle, nexus_sources, small_text, warm_starting

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "short",
    [
        lambda seed: warm_starting.warm_starting(seed, examples=100, draws=2, rates=(0.004,)),
        lambda seed: level_cycle.level_cycle(seed, steps=20, draws=1),
        lambda seed: nexus_sources.nexus_sources(seed, steps=5),
    ],
    ids=["warm_starting", "level_cycle", "nexus_sources"],
)
def test_short_runs_are_deterministic(short, monkeypatch):
    monkeypatch.setattr(warm_starting, "UNSEEN", 500)
    monkeypatch.setattr(small_text, "HELD_OUT", 5000)
    monkeypatch.setattr(level_cycle, "HELD_OUT", 4)
    monkeypatch.setattr(nexus_sources, "PEAKS", (0.02,))
    monkeypatch.setattr(nexus_sources, "SEEDS", 2)
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


def seeds(loss, elsewhere):
    """Three seeds that agree to a thousandth."""
    return [(loss + shift, 0.1, elsewhere + shift) for shift in (0.0, 0.001, -0.001)]


@pytest.mark.parametrize(
    ("nexus", "holds"),
    [
        (seeds(2.0, 2.9), True),  # better elsewhere at the same loss
        (seeds(2.1, 2.9), False),  # better elsewhere, at another loss
        (seeds(2.0, 3.1), False),
        ([(2.0, 0.1, 3.1), (2.0, 0.1, 2.9), (2.0, 0.1, 3.0)], None),
    ],
)
def test_judgement_of_nexus(nexus, holds):
    others = {arm: seeds(2.0, 3.0) for arm in ("plain", "control", "far")}
    found = nexus_sources._judged(others | {"nexus": nexus}, {"nexus": 0.01})
    assert found.holds is holds


def test_docstrings_are_a_text_of_their_own():
    text = bytes(nexus_sources.docstrings()["input_ids"][0].to(torch.uint8).tolist()).decode("ascii")
    assert len(text) > 30_000
    assert "Return" in text
    assert "self." not in text[:20_000] or text.count("def ") < 20


def test_lines_of_code_and_prose(monkeypatch):
    monkeypatch.setattr(gradient_normalized_lines, "MOST", 20)
    found = gradient_normalized_lines.gradient_normalized_lines(0)
    assert found == gradient_normalized_lines.gradient_normalized_lines(0)
    assert found != gradient_normalized_lines.gradient_normalized_lines(1)
    # The Hessian needs about nine steps; the others are still on their way after 20.
    assert found.numbers["exact steps"] < 15
    assert found.numbers["exact gradient at the end"] < 1e-8
    assert found.numbers["fisher gradient at the end"] > 1e-8
    assert found.holds is False
    features, labels = gradient_normalized_lines._lines(0)
    assert features.shape == (800, 48)
    assert labels.sum() == 0.0
