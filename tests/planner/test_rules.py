"""The rules one by one: relations that hold whatever the measured constants are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg import catalog
from thalweg.errors import RecipeError
from thalweg.laws.corpus_laws import Laws
from thalweg.laws.rate_rule import RateRule
from thalweg.planner import rules, which_laws
from thalweg.recipe import Choice, default_choice

TOKENS = st.floats(1e3, 1e13)


@pytest.fixture(scope="module")
def laws(constants):
    """The made-up laws of this folder."""
    return which_laws.built_in()


def test_the_shipped_constants_are_complete():
    # From the file: this folder's fixture stands in for what reads it.
    found = json.loads((Path(rules.__file__).parent / "constants.json").read_text(encoding="utf-8"))
    assert set(found) >= {"source", "law", "vocab_size", "batch", "context"}
    laws = Laws.from_dict(found, "constants.json")
    assert laws.law.sigma > 0
    assert (laws.rates, laws.origin) == ({}, "built-in")
    assert len(laws.points) >= 10


@given(TOKENS, st.floats(1, 100), st.integers(8, 10_000))
def test_windows_grow_with_tokens_up_to_what_is_allowed(tokens, more, most):
    short, long = rules.context(tokens, most).value, rules.context(tokens * more, most).value
    assert 8 <= short <= long <= min(most, rules.constants()["context"]["largest"])


def test_windows_double():
    found = {rules.context(tokens, 10_000).value for tokens in (1e4, 1.5e7, 3e7, 5e7, 1e12)}
    assert found == {256, 512, 1024, 2048}
    assert rules.context(1e12, 1500).value == 1024
    assert rules.context(1e12, 100) == rules.Decision(100, "100 tokens: all that corpus, model and memory allow")


@given(TOKENS, st.floats(1, 100), st.sampled_from([32, 100, 256, 1024]), st.integers(1, 16), st.integers(16, 10**9))
def test_batches_grow_with_tokens_and_are_shared_by_ranks(tokens, more, window, ranks, windows):
    small = rules.batch_windows(tokens, window, windows, ranks).value
    large = rules.batch_windows(tokens * more, window, windows, ranks).value
    assert small <= large <= max(windows, ranks)
    assert small % ranks == large % ranks == 0
    assert small > 0


def test_the_batch_is_near_the_critical_one():
    # 4096 tokens a step at one million tokens, and the square root of it.
    assert rules.batch_windows(1e6, 256, 10**9, 1).value == 16
    assert rules.batch_windows(1e8, 256, 10**9, 1).value == 128  # 160 rounded in the logarithm
    assert rules.batch_windows(1e3, 256, 10**9, 1).value == 4
    assert rules.batch_windows(1e8, 256, 50, 1).value == 50
    assert "no more" in rules.batch_windows(1e8, 256, 50, 1).reason


@given(st.integers(1, 3000), st.integers(0, 4000))
def test_micro_batches_have_no_remainder(rows, most):
    found = rules.largest_divisor(rows, most)
    assert rows % found == 0
    assert found <= max(most, 1)
    assert not [size for size in range(found + 1, min(rows, most) + 1) if rows % size == 0]


def test_peak_rate_falls_with_width(laws):
    for name in ("adamw", "muon"):
        card = catalog.lookup(name)
        base, at = card.defaults["peak_lr"], card.defaults["at_width"]
        assert rules.peak_lr(card, at, laws).value == pytest.approx(base)
        expected = base * 0.25 ** card.defaults["width_exponent"]
        assert rules.peak_lr(card, 4 * at, laws).value == pytest.approx(expected, rel=5e-3)
        assert f"{base:g}" in rules.peak_lr(card, 4 * at, laws).reason


def test_a_measured_rule_wins_over_the_card(laws):
    card = catalog.lookup("muon")
    measured = dataclasses.replace(laws, rates={"muon": RateRule(0.03, 96, 0.25)}, origin="a/laws.json")
    found = rules.peak_lr(card, 96 * 16, measured)
    assert found.value == pytest.approx(0.015)
    assert found.reason == "0.03 at width 96 was best for muon in the wind tunnel; falls as width^-0.25"
    # Of other optimizers the tunnel knows nothing.
    other = catalog.lookup("adamw")
    assert rules.peak_lr(other, 300, measured) == rules.peak_lr(other, 300, laws)


def test_an_optimizer_without_a_measured_rate_asks_for_one(laws):
    bare = dataclasses.replace(catalog.lookup("adamw"), defaults={})
    with pytest.raises(RecipeError, match="no peak learning rate") as caught:
        rules.peak_lr(bare, 256, laws)
    assert "training.peak_lr" in caught.value.fix


@given(st.floats(1.01, 1000), st.floats(1, 10), st.floats(1e-3, 10))
def test_weight_decay_never_falls_with_epochs(epochs, more, ratio):
    card = catalog.lookup("adamw")
    usual = card.defaults["weight_decay"]
    assert rules.weight_decay(card, 1 / epochs, ratio).value == usual
    assert (
        usual <= rules.weight_decay(card, epochs, ratio).value <= rules.weight_decay(card, epochs * more, ratio).value
    )


def test_weight_decay_is_stronger_when_data_is_repeated():
    card = catalog.lookup("adamw")
    once, often = rules.weight_decay(card, 0.9, 0.75), rules.weight_decay(card, 8, 0.75)
    assert often.value == pytest.approx(8 * once.value)
    assert "8.0 times" in often.reason


def test_warmup_is_an_option_of_the_schedule():
    default = catalog.lookup("wsd").options["warmup"].default
    assert rules.warmup(Choice(name="wsd")).value == default
    assert "default of wsd" in rules.warmup(Choice(name="wsd")).reason
    said = rules.warmup(Choice(name="wsd", options={"warmup": 0.2}))
    assert said == rules.Decision(0.2, rules.AS_SAID)


def test_a_schedule_without_warmup(monkeypatch):
    bare = dataclasses.replace(catalog.lookup("linear"), options={})
    monkeypatch.setattr(rules, "lookup", lambda name: bare)
    assert rules.warmup(Choice(name="linear")) == rules.Decision(None, "linear has no warm-up")


def test_methods_say_whether_they_are_the_default():
    assert rules.method(default_choice("optimizer"), "optimizer").reason.startswith("the default: ")
    said = rules.method(Choice(name="wsd", options={"decay": 0.3}), "schedule")
    assert said.value == "wsd:decay=0.3"
    assert said.reason.startswith(rules.AS_SAID)


@given(st.floats(1e5, 1e10), st.floats(1e5, 1e10))
def test_the_forecast_lies_in_its_interval(laws, parameters, tokens):
    found = rules.predicted_bits_per_byte(parameters, tokens, 1e12, laws)
    law = rules.constants()["law"]
    exact = law["E"] + law["A"] / parameters ** law["alpha"] + law["B"] / tokens ** law["beta"]
    assert found.value == pytest.approx(exact)
    assert found.low < found.value < found.high
    assert found.low * found.high == pytest.approx(found.value**2)


def test_repeated_tokens_are_discounted(laws):
    fresh = rules.predicted_bits_per_byte(1e6, 1e8, 1e8, laws).value
    assert rules.predicted_bits_per_byte(1e6, 1e8, 1e7, laws).value > fresh
    assert rules.predicted_bits_per_byte(1e6, 1e8, 1e9, laws).value == fresh


@given(st.floats(1e10, 1e24))
def test_the_pairing_is_the_law_s_optimum(laws, flops):
    best, tokens = laws.law.optimal(flops)
    assert rules.paired_parameters(tokens, 1e30, laws) == pytest.approx(best, rel=1e-6)


def test_a_trained_model_gets_a_tenth_of_the_rate(laws):
    card = catalog.lookup("muon")
    scratch, trained = rules.peak_lr(card, 256, laws), rules.peak_lr_of_trained(card, 256, laws)
    assert trained.value == pytest.approx(scratch.value / 10)
    assert "comes trained" in trained.reason
