"""Which laws a plan uses, and that it uses them: its numbers are those of the law it names."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from thalweg.cli.tables import law_lines
from thalweg.errors import UserError
from thalweg.laws.chinchilla import ChinchillaLaw
from thalweg.laws.corpus_laws import Laws
from thalweg.laws.rate_rule import RateRule
from thalweg.planner import which_laws

LAWS = Laws(
    law=ChinchillaLaw(3.0, 50.0, 0.5, 0.2, 0.4, sigma=0.01),
    rates={"muon": RateRule(0.05, 64, 0.5, "tried")},
    source="a tunnel",
    arm="muon",
    corpus="letters/",
    content_hash="c0ffee",
    tokenizer_hash="7ea",
    vocab_size=4096,
    points=((1e6, 1e6, 2.0),),
)


@pytest.fixture
def kept(made_up, tmp_path, monkeypatch):
    """A cache in which the laws of the made-up corpus are kept."""
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path))
    return which_laws.keep(LAWS, made_up.corpus())


def test_auto_is_for_exactly_this_corpus_and_tokenizer(made_up, kept):
    assert which_laws.which_laws("auto", made_up.corpus()) == LAWS
    for other in ({"content": "other"}, {"tokenizer_hash": "other"}):
        store = made_up.corpus()
        store.manifest |= other
        assert which_laws.which_laws("auto", store) == which_laws.built_in()
    assert which_laws.which_laws("built-in", made_up.corpus()) == which_laws.built_in()


def test_damage_in_the_cache_refuses_no_run(made_up, kept):
    kept.write_text(kept.read_text()[:-20])
    with pytest.warns(UserWarning, match="built-in laws"):
        assert which_laws.which_laws("auto", made_up.corpus()) == which_laws.built_in()


def test_a_path_is_a_file_or_the_folder_of_a_tunnel(made_up, tmp_path):
    (tmp_path / "laws.json").write_text(json.dumps(LAWS.to_dict()))
    for said in (tmp_path, tmp_path / "laws.json"):
        found = which_laws.which_laws(str(said), made_up.corpus())
        assert found == LAWS
        assert found.origin == str(tmp_path / "laws.json")
    with pytest.raises(UserError, match="cannot read the laws"):
        made_up.plan(laws=str(tmp_path / "none.json"))


@pytest.mark.parametrize("budget", ["2min", "400 steps", "1e15 flops"])
def test_a_plan_follows_the_laws_it_names(made_up, kept, budget):
    plan, usual = made_up.plan(budget=budget), made_up.plan(budget=budget, laws="built-in")
    for made, law in ((plan, LAWS.law), (usual, which_laws.built_in().law)):
        row = next(row for row in made["candidates"] if row["model"] == made["chosen"]["model"])
        size = row["parameters"] + 4096 * made["chosen"]["width"]
        assert row["predicted_bits_per_byte"] == pytest.approx(float(law.predict(size, row["tokens"])))
        assert row["high"] / row["low"] == pytest.approx(math.exp(2 * 1.96 * law.sigma))
        assert {name: made["law"][name] for name in law.to_dict()} == law.to_dict()
    width = plan["chosen"]["width"]
    assert plan["chosen"]["peak_lr"] == pytest.approx(0.05 * (64 / width) ** 0.5, rel=5e-3)
    assert usual["chosen"]["peak_lr"] == pytest.approx(0.0175 * (128 / usual["chosen"]["width"]) ** 0.5, rel=5e-3)
    assert (plan["law"]["origin"], usual["law"]["origin"]) == (str(kept), "built-in")


def test_another_law_may_choose_another_size(made_up, tmp_path):
    """Where tokens help little, a larger model is worth their loss."""
    hungry = replace(LAWS, law=replace(LAWS.law, A=300.0, alpha=0.4, B=1.0))
    (tmp_path / "laws.json").write_text(json.dumps(hungry.to_dict()))
    small, large = (made_up.plan(budget="1e15 flops", laws=said) for said in ("built-in", str(tmp_path)))
    assert made_up.rank(large) > made_up.rank(small)


def test_refits_make_the_interval_of_a_plan(made_up, tmp_path):
    import numpy as np

    law = replace(LAWS.law, refits=np.log([[3.0, 50.0, 0.5], [3.0, 50.0, 1.5]]), errors=np.zeros(2))
    law = replace(law, refits=np.column_stack([law.refits, [[0.2, 0.4]] * 2]))
    (tmp_path / "laws.json").write_text(json.dumps(replace(LAWS, law=law).to_dict()))
    plan = made_up.plan(budget="400 steps", laws=str(tmp_path))
    # One refit is the law itself, the other ends a whole bit above it.
    chosen = plan["chosen"]
    assert chosen["predicted_low"] == pytest.approx(chosen["predicted_bits_per_byte"], rel=1e-3)
    assert chosen["predicted_high"] == pytest.approx(chosen["predicted_bits_per_byte"] + 1, rel=0.03)


def test_the_lines_that_say_so(made_up, kept):
    law, rate = law_lines(made_up.plan(budget="400 steps"))
    assert law.startswith(f"Law, {kept}: 0.5 + 3 / N^0.200 + 50 / D^0.400 bits per byte, of which a run misses by 1.0%")
    assert rate == f"Rate, {kept}: 0.05 (64 / width)^0.5 for muon (tried)"
    assert law_lines(made_up.plan("adamw", budget="400 steps"))[1] == "Rate: the rule on the card of adamw"
