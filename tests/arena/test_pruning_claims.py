"""The claims of one-shot pruners hold for the methods as they are, and would not for others in their place."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from thalweg import catalog
from thalweg.arena.claims import one_shot_pruning as claims


@pytest.fixture
def given(causal_model):
    """A random model in place of the trained one; what its answers lose is the loss."""
    model = causal_model("llama", tied=True)
    windows = torch.randint(2, 61, (100, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model(windows[:20]).logits.softmax(-1)

    def evaluation(changed):
        with torch.no_grad():
            logits = changed(windows[:20]).logits
        return SimpleNamespace(loss=float(functional.cross_entropy(logits.flatten(0, 1), own.flatten(0, 1))))

    return SimpleNamespace(
        model=lambda: copy.deepcopy(model),
        calibration=lambda count, seed: windows[20 + seed : 20 + seed + count],
        evaluation=evaluation,
    )


@pytest.fixture
def in_place_of(monkeypatch):
    """Has a method answer to the name of another."""
    resolve = catalog.resolve

    def arrange(name, other, **options):
        known = catalog.lookup(other).options

        def make(**given):
            return resolve(other)(**{key: value for key, value in {**given, **options}.items() if key in known})

        monkeypatch.setattr(catalog, "resolve", lambda asked: make if asked == name else resolve(asked))

    return arrange


def test_half_goes_free_is_judged_by_the_loss_and_by_chance(given, in_place_of, monkeypatch):
    found = claims.half_goes_free(given=given)
    numbers = found.numbers
    # In a random model nothing is free, though magnitude is better than chance.
    assert found.holds is False
    assert numbers["loss unpruned"] < numbers["loss, 30% pruned"] < numbers["loss, 50% pruned"]
    assert numbers["loss, 50% pruned"] < numbers["loss, 50% pruned at random"]
    assert found == claims.half_goes_free(given=given)
    assert found != claims.half_goes_free(seed=1, given=given)
    share = numbers["loss, 50% pruned"] / numbers["loss unpruned"] - 1
    monkeypatch.setattr(claims, "FREE", share * 1.01)
    assert claims.half_goes_free(given=given).holds is True
    monkeypatch.setattr(claims, "FREE", 100.0)
    assert claims.half_goes_free(given=given).holds is None


def test_planted_outliers_change_nothing_but_the_weights(given):
    plain, planted = given.model(), given.model()
    claims._plant(planted, seed=0)
    windows = given.calibration(4, 0)
    with torch.no_grad():
        torch.testing.assert_close(planted(windows).logits, plain(windows).logits, rtol=1e-4, atol=1e-4)
    gain = planted.model.layers[0].input_layernorm.weight / plain.model.layers[0].input_layernorm.weight
    assert sorted(gain.tolist()) == pytest.approx([1.0] * 8 + [claims.FACTOR] * 8)


def test_inputs_matter_only_to_what_looks_at_them(given, in_place_of):
    found = claims.inputs_matter(given=given)
    # No feature of a random model stands out, and magnitude alone is as good.
    assert found.holds is False
    # Wanda does not see the planted scale, but for rounding.
    assert found.numbers["loss wanda, outliers planted"] == pytest.approx(found.numbers["loss wanda"][0], abs=2e-4)
    assert found.numbers["loss magnitude, outliers planted"] > found.numbers["loss magnitude"]
    plain = given.model

    def with_outliers():
        model = plain()
        claims._plant(model, seed=5)
        return model

    given.model = with_outliers
    assert claims.inputs_matter(given=given).holds is True
    in_place_of("wanda", "magnitude")
    assert claims.inputs_matter(given=given).holds is False


def test_the_rest_makes_up_only_where_it_is_changed(given, in_place_of):
    found = claims.the_rest_makes_up(given=given)
    assert found.holds is True
    assert found.numbers["wanda over sparsegpt"] > 0
    assert claims.the_rest_makes_up(given=given, draws=1).holds is False
    in_place_of("sparsegpt", "wanda")
    assert claims.the_rest_makes_up(given=given).holds is False
