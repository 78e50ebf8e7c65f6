"""Numbers as people read them; foreign text without invisible tricks."""

from __future__ import annotations

import math
from typing import Any

import pytest

from thalweg.reports import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.84239, "1.842"), (12_340, "12,340"), (0.0003, "0.0003"), (3e-7, "3.000e-07"), (0, "0"), (-2.5, "-2.5"),
     (None, "—"), (math.nan, "—"), (math.inf, "—"), ("1", "—"), (True, "—"), (10**400, "—")],
)  # fmt: skip
def test_significant(value: Any, text: str) -> None:
    assert formats.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999"), (999_960, "1 M"), (12_345_678, "12.3 M"), (2.5e9, "2.5 B"), (1500, "1.5 k")]
)
def test_amount(value: float, text: str) -> None:
    assert formats.amount(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.44, "8.44 s"), (118, "1 min 58 s"), (3599.7, "1 h 00 min"), (11_100, "3 h 05 min"), (None, "—")],
)
def test_duration(value: float | None, text: str) -> None:
    assert formats.duration(value) == text


def test_clean_shows_what_would_be_invisible() -> None:
    assert formats.clean("a\x00b\x1b[1m\u202ec\ud800") == "a␀b␛[1m⟨U+202E⟩c⟨U+D800⟩"
    assert formats.clean("tab\tline\nend") == "tab\tline\nend"


def test_command_is_quoted_for_a_shell() -> None:
    assert formats.command_line(["thalweg", "train", "my corpus"]) == "thalweg train 'my corpus'"
    assert formats.command_line("thalweg train x\n") == "thalweg train x"
    assert formats.command_line(None) == ""


def test_flattened_tables() -> None:
    assert formats.flattened({"cpu": {"cores": 2, "avx": True}, "name": "x"}) == [
        ("cpu.cores", "2"),
        ("cpu.avx", "yes"),
        ("name", "x"),
    ]
