"""Laws as files: they come back as they were, and whatever is damaged is told in words."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.errors import UserError
from thalweg.laws.chinchilla import ChinchillaLaw
from thalweg.laws.corpus_laws import Laws, load
from thalweg.laws.rate_rule import RateRule

REFITS = np.array([[1.0, 2.0, 0.1, 0.3, 0.4], [1.1, 2.2, 0.15, 0.31, 0.42]])
LAWS = Laws(
    law=ChinchillaLaw(20.0, 60.0, 1.2, 0.3, 0.4, REFITS, np.array([0.01, 0.02]), 0.013),
    rates={"muon": RateRule(0.02, 128, 0.5, "measured", ((64.0, 0.02, 2.5), (96.0, 0.01, 2.25)))},
    source="six runs",
    arm="muon+wsd",
    corpus="texts/",
    content_hash="ab",
    tokenizer_hash=None,
    vocab_size=4096,
    points=((1e6, 2e6, 2.25),),
)


def test_a_round_trip(tmp_path):
    path = tmp_path / "laws.json"
    path.write_text(json.dumps(LAWS.to_dict()))
    again = load(path)
    assert again == LAWS
    assert again.law.refits == pytest.approx(REFITS)
    assert again.forecast(3e6, 1e7) == LAWS.forecast(3e6, 1e7)
    assert again.to_dict() == LAWS.to_dict()
    assert again.origin == str(path)


def test_without_refits_the_interval_is_that_of_one_run():
    plain = Laws.from_dict({**LAWS.to_dict(), "refits": [], "errors": []}, "here")
    value, low, high = plain.forecast(1e6, 1e6)
    assert (low / value, high / value) == pytest.approx((math.exp(-1.96 * 0.013), math.exp(1.96 * 0.013)))


def paths(value, before=()):
    """Every place in nested plain data."""
    yield before
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from paths(one, (*before, key))


PLACES = [path for path in paths(LAWS.to_dict()) if path]
JUNK = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.sampled_from([math.nan, math.inf, -1.0, 0, 10**400, 1e70]),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)  # fmt: skip


@settings(max_examples=400)
@given(st.sampled_from(PLACES), JUNK)
def test_what_is_wrong_is_told_or_harmless(path, junk):
    """Junk in any place is an error in words; what passes forecasts finite numbers in order."""
    said = copy.deepcopy(LAWS.to_dict())
    inner = said
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = junk
    try:
        laws = Laws.from_dict(said, "there")
    except UserError:
        return
    value, low, high = laws.forecast(1e6, 1e7)
    assert 0 < low <= value <= high < math.inf
    assert all(0 < rule.at(256) < math.inf for rule in laws.rates.values())
    assert json.dumps(laws.to_dict(), allow_nan=False)


@settings(max_examples=100)
@given(st.sampled_from(sorted(LAWS.to_dict())))
def test_a_missing_key_is_named(key):
    said = LAWS.to_dict()
    said.pop(key)
    with pytest.raises(UserError, match=f"there is no {key}"):
        Laws.from_dict(said, "there")


@settings(max_examples=100)
@given(st.binary(max_size=60) | st.integers(1, 500).map(lambda cut: json.dumps(LAWS.to_dict()).encode()[:-cut]))
def test_files_that_hold_no_laws(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("laws") / "laws.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(path)
    assert caught.value.where == str(path)
    assert caught.value.fix


def test_there_is_no_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("schema", 2, "form 2"),
        ("law", [], "law is no object"),
        ("rates", {"muon": {"peak_lr": -1}}, r"rates\.muon\.peak_lr is not in range"),
        ("refits", [[1, 2, 3]], "rows of 5"),
        ("errors", [0.1], "are none of a law"),
        ("points", [[1, 0, 2]], "points is not positive"),
    ],
)
def test_mistakes_by_name(key, value, says):
    with pytest.raises(UserError, match=says):
        Laws.from_dict({**LAWS.to_dict(), key: value}, "there")
