"""Refinement against the numbers of its sheet, and the files that carry it from run to run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.errors import RecipeError
from thalweg.methods.schedules import Refined
from thalweg.methods.schedules.base import StepClock
from thalweg.methods.schedules.refined import FORMAT, read, refine, smoothed


@pytest.fixture
def source(tmp_path):
    def make(norms, **options):
        path = tmp_path / "refined.json"
        path.write_text(Refined.from_norms(norms, **options).text({"run": "a"}), encoding="utf-8")
        return str(path)

    return make


@pytest.mark.parametrize("q", [1, 2])
def test_equal_norms_are_linear_decay(q):
    assert refine([3.0] * 5, q=q, window=0.0) == pytest.approx([1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("norms", "q", "expected"),
    [
        ([4, 2, 1, 1, 2], 1, [0.5, 0.833333, 1, 0.333333, 0]),
        ([4, 2, 1, 1, 2], 2, [0.125, 0.45, 1, 0.2, 0]),
        ([1, 1, 1, 1, 4], 1, [1, 0.692308, 0.384615, 0.076923, 0]),
        ([1, 1, 1, 1, 4], 2, [1, 0.673469, 0.346939, 0.020408, 0]),
    ],
)
def test_oracle(norms, q, expected):
    assert refine(norms, q=q, window=0.0) == pytest.approx(expected, abs=1e-6)
    assert refine([1e-200 * norm for norm in norms], q=q, window=0.0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("q", "first"), [(2, 0.0101), (1, 0.1029)])
def test_falling_norms_are_a_warmup(q, first):
    """Norms from 10 to 1 over the first tenth: the peak is at a tenth, without anyone asking for a warm-up."""
    norms = np.interp(np.arange(1000), [0, 100], [10, 1])
    factors = refine(norms, q=q, window=0.0)
    assert factors.argmax() == 100
    assert factors[0] == pytest.approx(first, abs=5e-5)


def test_the_median_removes_a_spike_and_keeps_the_left_edge():
    norms = np.array([5.0, 1, 1, 1, 9, 1, 1, 1, 1, 1])
    assert smoothed(norms, 0.3).tolist() == [5, 1, 1, 1, 1, 1, 1, 1, 1, 1]


def test_the_right_edge_is_reflected():
    """A rise to the very end: with the last value repeated the median would not see it turn."""
    norms = np.concatenate([np.ones(90), np.linspace(1, 11, 10)])
    width = 11
    beyond = np.concatenate([norms, norms[-2::-1][:22]])
    assert smoothed(norms, 0.11)[-1] == np.median(beyond[99 - width // 2 : 100 + width // 2])


def test_another_number_of_steps():
    norms = [4.0, 2, 1, 1, 2]
    assert refine(norms, steps=9, q=1, window=0.0) == pytest.approx(
        refine([4, 3, 2, 1.5, 1, 1, 1, 1.5, 2], q=1, window=0.0)
    )


@given(st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=40), st.sampled_from([1, 2]), st.floats(0, 1))
def test_factors_are_what_they_should_be(norms, q, window):
    factors = refine(norms, q=q, window=window)
    assert factors.max() == 1.0
    assert factors[-1] == 0.0
    assert (factors[:-1] > 0).all() or q == 2
    assert (factors >= 0).all()


def test_the_schedule_is_the_factors_step_by_step(source):
    norms = [4.0, 2, 1, 1, 2, 3, 3, 4, 4, 4]
    schedule, expected = Refined(source(norms, q=1, window=0.0)), refine(norms, q=1, window=0.0)
    seen = [schedule.factor(StepClock(t, (t + 1) / 10)) for t in range(10)]
    assert seen == pytest.approx(expected.tolist(), abs=1e-12)
    assert Refined.from_norms(norms, q=1, window=0.0).factors == schedule.factors
    assert schedule.factor(StepClock(0, 0.05)) == pytest.approx(expected[0])
    assert schedule.factor(StepClock(0, 0.25)) == pytest.approx((expected[1] + expected[2]) / 2)


def test_without_a_source_it_is_linear_decay():
    assert [Refined().factor(StepClock(0, p)) for p in (0.0, 0.3, 0.5, 1.0)] == pytest.approx([1, 0.7, 0.5, 0])


def test_a_resumed_run_notices_another_file(source):
    first = Refined(source([4.0, 2, 1, 1, 2]))
    state = first.state_dict()
    Refined(source([4.0, 2, 1, 1, 2])).load_state_dict(state)
    with pytest.raises(RecipeError, match="another one"):
        Refined(source([4.0, 2, 1, 1, 3])).load_state_dict(state)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1, 2]", "no refined schedule"),
        ('{"factors": [1, 0.5, 0]}', "no refined schedule"),
        (json.dumps({"format": FORMAT, "factors": "1"}), "no refined schedule"),
        (json.dumps({"format": FORMAT, "factors": [1.0, 0.0]}), "3 or more"),
        (json.dumps({"format": FORMAT, "factors": [1.0, True, 0.0]}), "3 or more"),
        (json.dumps({"format": FORMAT, "factors": [1.0, 2.0, 0.0]}), "3 or more"),
        (json.dumps({"format": FORMAT, "factors": [1.0, float("nan"), 0.0]}), "3 or more"),
        (json.dumps({"format": FORMAT, "factors": [1.0, [0.5], 0.0]}), "3 or more"),
    ],
)
def test_files_are_not_trusted(tmp_path, text, said):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        read(tmp_path / "x.json")


def test_a_missing_file_says_how_it_is_made(tmp_path):
    with pytest.raises(RecipeError, match="cannot read") as caught:
        Refined(str(tmp_path / "nothing.json"))
    assert "thalweg schedule refine" in caught.value.fix


@pytest.mark.parametrize(
    ("norms", "options", "said"),
    [
        ([1, 2], {}, "too few"),
        ([1, 2, np.nan], {}, "finite"),
        ([1, 2, -1], {}, "at least 0"),
        ([0, 0, 0], {}, "zero for long"),
        ([1, 2, 3], {"q": 5}, "q = 5"),
        ([1, 2, 3], {"window": 2}, "window = 2"),
        ([1, 2, 3], {"steps": 2}, "too few"),
    ],
)
def test_mistakes_are_named(norms, options, said):
    with pytest.raises(RecipeError, match=said):
        refine(norms, **options)
