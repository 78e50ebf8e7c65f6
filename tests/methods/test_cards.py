"""Every card of every family is complete, true to its object, and puts its claim to a test that can be run."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib

import pytest

from thalweg import catalog
from thalweg.arena.claims.finding import find
from thalweg.arena.race import PASSED_ON
from thalweg.recipe import Recipe

CARDS = catalog.load()
FROM_THE_PLAN = {"params", "lr", "weight_decay"}
REQUIRED = {"object", "slot", "title", "year", "idea", "paper_claim", "cost", "options", "claim"}


def parameters_with_defaults(name):
    """Of a procedure only what is given by keyword alone: it also takes tensors and functions, which are no options."""
    signature = inspect.signature(catalog.resolve(name))
    procedure = CARDS[name].slot == "procedure"
    return {
        key: parameter.default
        for key, parameter in signature.parameters.items()
        if parameter.default is not inspect.Parameter.empty
        and key not in FROM_THE_PLAN
        and not (procedure and parameter.kind is not inspect.Parameter.KEYWORD_ONLY)
    }


@pytest.mark.parametrize("name", CARDS)
def test_card_is_complete(name):
    path = catalog.METHODS / CARDS[name].family / "cards.toml"
    entry = tomllib.loads(path.read_text(encoding="utf-8"))[name]
    assert set(entry) - {"arxiv", "defaults"} == REQUIRED
    assert ("defaults" in entry) == (entry["slot"] == "optimizer")
    assert entry["slot"] in catalog.SLOTS
    assert 1900 < entry["year"] < 2100
    for text in ("idea", "paper_claim", "cost"):
        assert len(entry[text]) > 30, text
        assert entry[text].endswith((".", ")")), text
    assert "arxiv" not in entry or re.fullmatch(r"\d{4}\.\d{4,5}", entry["arxiv"])


@pytest.mark.parametrize("name", CARDS)
def test_options_are_the_constructor(name):
    options = CARDS[name].options
    assert {key: option.default for key, option in options.items()} == parameters_with_defaults(name)
    for key, option in options.items():
        assert type(option.default).__name__ == option.type, key
        assert option.help, key
        assert option.check(option.default, where=name) == option.default


@pytest.mark.parametrize("name", CARDS)
def test_claim_is_a_race_or_a_function(name):
    claim = dict(CARDS[name].claim)
    assert "function" in claim or CARDS[name].slot != "procedure"
    if "function" in claim:
        assert set(claim) == {"function"}
        parameters = inspect.signature(find(claim["function"])).parameters
        assert parameters["seed"].default == 0
        assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters.values())
        return
    assert set(claim) >= {"arms", "budget", "seeds", "expect"}
    assert set(claim) <= {"arms", "expect", *PASSED_ON}
    assert claim["expect"] in ("better", "tied", "worse")
    assert claim["seeds"] >= 3


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if "arms" in card.claim])
def test_claim_arms_are_recipes_and_the_last_one_has_the_method(name):
    claim = CARDS[name].claim
    assert len(claim["arms"]) >= 2
    for arm in claim["arms"]:
        Recipe.parse(arm, budget=claim["budget"])
    assert name in re.split(r"[+:]", claim["arms"][-1])


@pytest.mark.parametrize("name", CARDS)
def test_family_offers_the_object_by_its_name(name):
    card = CARDS[name]
    family = importlib.import_module(f"thalweg.methods.{card.family}")
    attribute = card.object.split(":")[1]
    assert getattr(family, attribute) is catalog.resolve(name)
    assert attribute in dir(family)


def test_family_refuses_unknown_names():
    from thalweg.methods import schedules

    with pytest.raises(AttributeError, match="Sinusoid"):
        schedules.Sinusoid  # noqa: B018
