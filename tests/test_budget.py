from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.budget import UNITS, Budget
from thalweg.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("90s", 90, "seconds"),
        ("2min", 120, "seconds"),
        ("2 minutes", 120, "seconds"),
        ("1h30m", 5400, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("1d", 86400, "seconds"),
        ("2000 steps", 2000, "steps"),
        ("1 step", 1, "steps"),
        ("2k steps", 2000, "steps"),
        ("50M tokens", 50e6, "tokens"),
        ("50_000_000 tokens", 50e6, "tokens"),
        ("2 epochs", 2, "epochs"),
        ("0.5 epochs", 0.5, "epochs"),
        ("1e17 flops", 1e17, "flops"),
    ],
)
def test_reads_what_people_write(text, amount, unit):
    assert Budget.parse(text) == Budget(amount, unit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "5",
        "-3 steps",
        "0 steps",
        "0.2 steps",
        "nan s",
        "infs",
        "1e999 flops",
        "3 parsecs",
        "1h 5",
        "tokens",
    ],
)
def test_refuses_the_rest_with_examples(text):
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    assert caught.value.fix


def test_not_a_text():
    with pytest.raises(BudgetError, match="12 is no budget"):
        Budget.parse(12)  # type: ignore[arg-type]


@given(st.floats(1e-3, 1e30, allow_nan=False), st.sampled_from(UNITS))
def test_round_trip(amount, unit):
    if unit in ("steps", "tokens") and round(amount) < 1:
        amount = 1.0
    budget = Budget(amount, unit)
    assert Budget.parse(str(budget)) == budget
