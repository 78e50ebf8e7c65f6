"""The claims on schedules that are no races: short runs of them are deterministic, and their judgement is right."""

from __future__ import annotations

import json

import pytest

from thalweg.arena.claims import drift_adjusted, refinement, rewarming, small_text

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "short",
    [
        lambda seed: rewarming.rewarming(seed, first=30, second=15),
        lambda seed: refinement.refinement(seed, steps=20, seeds=2),
        lambda seed: drift_adjusted.drift_adjusted(seed, gradients=20, seeds=1),
    ],
    ids=["rewarming", "refinement", "drift_adjusted"],
)
def test_short_runs_are_deterministic(short, monkeypatch):
    monkeypatch.setattr(small_text, "HELD_OUT", 2000)
    found = short(0)
    assert found == short(0)
    assert found != short(1)
    json.dumps(dict(found.numbers), allow_nan=False)
    assert len(found.sentence) > 100


def test_the_two_texts_are_different_and_can_be_learnt():
    (prose, held_prose), (code, held_code) = small_text.prose(), small_text.code()
    assert min(prose.token_count, code.token_count) > 200_000
    model = small_text.network(0)
    assert small_text.held_out(model, held_prose) == pytest.approx(4.85, abs=0.2)  # log 128 and a little
    from thalweg.data import WindowSampler
    from thalweg.methods.schedules import Linear

    small_text.train(model, WindowSampler(prose, 32, 16, seed=0), Linear(), 0.01, 100)
    losses = [small_text.held_out(model, held) for held in (held_prose, held_code)]
    assert losses[0] < 2.6
    assert losses[0] < losses[1]


def rewarmed(**changes):
    found = {
        "prose only": [1.0, 3.0],
        "stay": [1.2, 2.0],
        "rewarm": [1.6, 1.8],
        "redecay 0%": [1.5, 1.5],
        "redecay 5%": [1.2, 1.5],
        "redecay 25%": [1.05, 1.55],
        "redecay 50%": [1.02, 1.7],
        "union": [1.0, 1.57],
    }
    return rewarming._judged({**found, **changes}, 0.01)


def test_what_rewarming_asks_for():
    assert rewarmed().holds is True
    assert rewarmed().numbers["best"] == "redecay 25%"
    assert rewarmed(stay=[1.2, 1.4]).holds is False  # staying at the last rate adapts as well
    assert rewarmed(**{"redecay 5%": [1.3, 1.5]}).holds is False  # 5% replay forgets more than half as much
    assert rewarmed(union=[1.0, 1.4]).holds is False  # too far behind training on everything


@pytest.mark.parametrize(
    ("refined", "holds"),
    [([1.9, 1.901, 1.899], True), ([2.001, 2.0, 2.002], True), ([2.1, 2.101, 2.1], False), ([1.8, 2.2, 2.0], None)],
)
def test_what_refinement_asks_for(refined, holds):
    assert refinement._judged([[2.0, 2.0, 2.0], refined], {}, [0.5, 1.0, 0.0]).holds is holds


def drift(dal=0.01, large=40.0, rates=(0.5, 0.2, 0.1)):
    names = [f"{kind} {index}" for kind in ("constant", "cosine") for index in range(4)]
    runs = {name: [{"last": last, "worst": 1.0}] for name, last in zip(names, (*rates, large) * 2, strict=True)}
    runs |= {f"dal p={p}": [{"last": dal, "worst": 1.0, "rate": 1.0}] for p in ("1", "0.5")}
    return drift_adjusted._judged(runs)


def test_what_drift_adjustment_asks_for():
    assert drift().holds is True
    assert drift(dal=0.4).holds is False  # no better than a rate that nobody tuned, 0.35
    assert drift(dal=float("inf")).holds is False
    assert "DAL too" in drift(dal=float("inf")).sentence
    assert drift(large=0.05).holds is False  # nothing diverged, so nothing was put to the test
