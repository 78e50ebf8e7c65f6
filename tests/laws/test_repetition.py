"""What repeated data is worth."""

from __future__ import annotations

import math

import pytest

from thalweg.errors import UserError
from thalweg.laws.repetition import effective_parameters, effective_tokens, weight_decay_factor


def test_one_pass_is_worth_itself():
    assert effective_tokens(0.3e6, 1e6) == 0.3e6
    assert effective_tokens(1e6, 1e6) == 1e6
    assert effective_tokens(1.0001e6, 1e6) == pytest.approx(1.0001e6, rel=1e-6)


def test_formula_by_hand():
    # Four epochs are three repetitions: 1 + 15.387756 * (1 - exp(-3 / 15.387756)) = 3.72567.
    assert effective_tokens(4e6, 1e6) == pytest.approx(3.72567e6, rel=1e-5)
    assert effective_tokens(3.0, 1.0, r_star=2.0) == pytest.approx(1 + 2 * (1 - math.exp(-1)), rel=1e-12)


def test_four_epochs_are_nearly_new_and_many_are_bounded():
    assert effective_tokens(4.0, 1.0) / 4 > 0.9
    assert effective_tokens(1e9, 1.0) == pytest.approx(16.387756)


def test_worth_of_the_next_token_falls_to_one_e_th():
    step = 1e-4
    worth = (effective_tokens(16.387756 + step, 1.0) - effective_tokens(16.387756, 1.0)) / step
    assert worth == pytest.approx(math.exp(-1), rel=1e-3)


def test_excess_parameters():
    assert effective_parameters(5e6, 1e7) == 5e6
    assert effective_parameters(1e12, 1.0) == pytest.approx(6.309743)


@pytest.mark.parametrize(
    ("parameters", "epochs", "decay"), [(150e6, 16, 0.8), (300e6, 16, 1.6), (600e6, 8, 3.2), (1.4e9, 8, 3.2)]
)
def test_weight_decay_gives_the_table(parameters, epochs, decay):
    assert 0.1 * weight_decay_factor(epochs, parameters / 200e6) == pytest.approx(decay, rel=1e-9)


def test_weight_decay_is_the_usual_without_repetition_and_rises():
    assert weight_decay_factor(1) == weight_decay_factor(0.2) == 1.0
    factors = [weight_decay_factor(epochs) for epochs in (1, 1.5, 2, 4, 8, 16)]
    assert factors == pytest.approx([1.0, 8 ** (math.log2(1.5) / 3), 2.0, 4.0, 8.0, 8.0])
    # A model far too small for its data can hardly overfit: nothing is added.
    assert weight_decay_factor(16, 0.01) == 1.0


def test_nonsense_is_refused():
    with pytest.raises(UserError):
        effective_tokens(1e6, 0)
    with pytest.raises(UserError):
        effective_tokens(-1, 10)
    with pytest.raises(UserError):
        weight_decay_factor(0)
