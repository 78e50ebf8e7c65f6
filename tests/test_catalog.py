from __future__ import annotations

import subprocess
import sys

import pytest

from thalweg import catalog
from thalweg.errors import RecipeError


def test_every_card_resolves_to_its_object():
    cards = catalog.load()
    assert {"adamw", "muon", "constant", "linear", "cosine", "wsd", "cross_entropy", "dynamic_loss"} <= set(cards)
    for name in cards:
        assert callable(catalog.resolve(name)), name


def test_every_card_is_whole():
    for card in catalog.load().values():
        assert card.slot in catalog.SLOTS, card.name
        for text in (card.idea, card.paper_claim, card.cost):
            assert len(text) > 20, card.name
            assert "TO MEASURE" not in text, card.name
        assert 1900 < card.year < 2100
        assert card.claim.get("arms") or card.claim["function"], card.name
        for option in card.options.values():
            assert option.check(option.default, where=card.name) == option.default


def test_optimizers_state_their_defaults():
    for card in catalog.load().values():
        if card.slot == "optimizer":
            assert {"peak_lr", "at_width", "width_exponent", "weight_decay"} <= set(card.defaults), card.name


def test_unknown_name_gets_the_nearest():
    with pytest.raises(RecipeError) as caught:
        catalog.lookup("cosinus")
    assert caught.value.fix == "Did you mean cosine?"


def test_far_off_name_gets_the_list():
    with pytest.raises(RecipeError) as caught:
        catalog.lookup("xyzzy")
    assert "thalweg methods" in caught.value.fix


def typed(argument: str) -> str:
    """The statements of `thalweg ARGUMENT`."""
    start = f"import sys; sys.argv = ['thalweg', {argument!r}]; from thalweg.cli import main"
    return f"{start}\ntry: main()\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    "statement",
    [
        "import thalweg",
        "from thalweg import catalog; catalog.load()",
        "from thalweg.recipe import Recipe; Recipe.parse('muon+wsd:decay=0.2').toml()",
        typed("--help"),
        typed("--version"),
        typed("methods"),
    ],
)
def test_nothing_heavy_is_imported(statement):
    heavy = "{'torch', 'transformers', 'numpy', 'scipy', 'plotly', 'matplotlib'}"
    code = f"{statement}\nimport sys\nfound = {heavy} & set(sys.modules)\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
