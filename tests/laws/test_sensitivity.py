"""Learning-rate sensitivity against the sheet's number and its bounds."""

from __future__ import annotations

import math

import pytest

from thalweg.errors import UserError
from thalweg.laws.sensitivity import sensitivity

LOSSES = (3.0, 2.9, 2.8, 2.9, 3.5, 9.0, 12.0)


def test_the_example_of_the_sheet():
    assert sensitivity(LOSSES, 10.4) == pytest.approx(2.128571, abs=1e-6)


def test_diverged_runs_count_as_untrained():
    expected = sensitivity(LOSSES, 10.4)
    assert sensitivity((*LOSSES[:-1], None), 10.4) == pytest.approx(expected)
    assert sensitivity((*LOSSES[:-1], math.nan), 10.4) == pytest.approx(expected)
    assert sensitivity((*LOSSES[:-1], math.inf), 10.4) == pytest.approx(expected)


def test_bounds():
    assert sensitivity([2.0, 2.0, 2.0], 10.0) == 0.0
    assert sensitivity([None, None], 10.0) == 0.0
    assert sensitivity([2.0, None], 10.0) == pytest.approx(4.0)
    with pytest.raises(UserError):
        sensitivity([], 10.0)
