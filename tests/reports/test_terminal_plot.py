"""Curves in plain characters: what stands in which cell."""

from __future__ import annotations

import pytest

from thalweg.reports.terminal_plot import MARKS, draw


def test_a_line_from_corner_to_corner_with_axes_and_legend():
    text = draw({"down": [(0, 1.0), (10, 0.0)]}, width=26, height=5, top=1.0, x_label="steps", y_label="rate")
    assert text.splitlines() == [
        "rate",
        "1 |***",
        "  |  *******",
        "  |        *******",
        "  |              *******",
        "0 |                    ***",
        "  +-----------------------",
        "   0              10 steps",
        "* down",
    ]


def test_a_jump_is_a_line_and_curves_on_each_other_take_turns():
    falls = [(0, 1.0), (5, 1.0), (5.0001, 0.0), (10, 0.0)]
    text = draw({"falls": falls, "stays": [(0, 1.0), (10, 1.0)]}, width=26, height=5, top=1.0)
    assert text.splitlines()[:5] == [
        "1 |*o*o*o*o*o*oooooooooooo",
        "  |           *",
        "  |           *",
        "  |           *",
        "0 |           ************",
    ]
    assert text.splitlines()[-1] == "* falls   o stays"


def test_a_spike_between_two_columns_is_seen():
    points = [(0, 0.0), (499, 0.0), (500, 1.0), (501, 0.0), (1000, 0.0)]
    top = draw({"spike": points}, width=30, height=9, top=1.0).splitlines()[0]
    assert top.count("*") == 1


@pytest.mark.parametrize("width", [24, 40, 80, 133])
def test_no_line_is_wider_than_the_terminal_and_the_axis_fills_it(width):
    curves = {f"schedule:number={number}": [(1, 0.2), (50, number / 30)] for number in range(30)}
    lines = draw(curves, width=width, top=1.0, x_label="steps", y_label="learning rate / peak").splitlines()
    assert max(map(len, lines)) == width
    axis = next(line for line in lines if "+--" in line)
    assert len(axis) == width
    assert sum(line.count("schedule:number=") for line in lines) == 30


def test_every_curve_has_a_character_of_its_own():
    curves = {str(number): [(0, 0.5), (1, 0.5)] for number in range(len(MARKS))}
    text = draw(curves, width=200, top=1.0)
    assert len(set(MARKS)) == len(MARKS) == 60
    assert all(f"{mark} {number}" in text for number, mark in enumerate(MARKS))
    assert text.isascii()


def test_a_curve_that_ends_early_or_begins_late_is_held():
    text = draw({"short": [(4, 1.0), (6, 1.0)], "long": [(0, 0.0), (10, 0.0)]}, width=26, height=5, top=1.0)
    assert text.splitlines()[0] == "1 |" + "*" * 23


def test_higher_tops_and_their_numbers():
    lines = draw({"high": [(0, 2.0), (1, 2.0)]}, width=40, top=2.0).splitlines()
    assert [line.split("|")[0].strip() for line in lines[:17:4]] == ["2", "1.5", "1", "0.5", "0"]
    assert "*" in lines[0]
