from __future__ import annotations

import contextlib
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg import catalog
from thalweg.arms import choices_of, parse_arm, parse_schedule
from thalweg.budget import UNITS, Budget
from thalweg.errors import RecipeError, UserError
from thalweg.recipe import Recipe


def test_arm_options_and_defaults():
    recipe = Recipe.parse("muon+wsd:decay=0.3,shape=cosine", budget="300 steps")
    assert recipe.optimizer.name == "muon"
    assert recipe.schedule.options == {"decay": 0.3, "shape": "cosine"}
    assert recipe.objective.name == "cross_entropy"
    assert recipe.reweighting is None
    assert recipe.budget == Budget(300, "steps")


def test_order_of_names_does_not_matter():
    one = Recipe.parse("wsd+muon+gradient_noise:eta=0.1+z_loss_penalty")
    other = Recipe.parse("z_loss_penalty+gradient_noise:eta=0.1+muon+wsd")
    assert one == other
    assert one.arm == other.arm == "muon+wsd+cross_entropy+gradient_noise:eta=0.1+z_loss_penalty"


def test_file_arm_and_python_say_the_same(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('budget = "300 steps"\n[optimizer]\nname = "muon"\n[schedule]\nname = "wsd"\ndecay = 0.2\n')
    from_file = Recipe.read(path)
    from_arm = Recipe.parse("muon+wsd:decay=0.2", budget="300 steps")
    from_python = Recipe(
        budget=Budget(300, "steps"),
        optimizer={"name": "muon"},
        schedule={"name": "wsd", "decay": 0.2},
    )
    assert from_file == from_arm == from_python
    assert from_file.toml() == from_arm.toml() == from_python.toml()


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ("muonn", "Did you mean muon"),
        ("muon+muon", "named twice"),
        ("muon+adamw", "both want the one optimizer slot"),
        ("wsd:decai=0.2", "Did you mean decay?"),
        ("wsd:decay=fast", "wsd:decay"),
        ("wsd:decay=2", "at most 1"),
        ("wsd:decay=nan", "at most 1"),
        ("wsd:shape=round", "one of linear"),
        ("muon:ns_steps=2.5", "a whole number"),
        ("muon:nesterov=1", "true or false"),
        ("muon:nesterov", "name:key=value"),
        ("wsd:decay=0.1,decay=0.2", "given twice"),
        ("muon+", "no method"),
        ("+", "no method"),
        ("adamw+multi_level", "Call it from Python: thalweg.methods.optimizers.v_cycle"),
        ("multi_level:levels=3", "has no place in a recipe"),
    ],
)
def test_mistakes_in_arms_say_what_to_do(arm, says):
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(arm)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("budgett = '1h'", "Did you mean budget?"),
        ("[training]\nbatchsize = 4", "Did you mean batch_size?"),
        ("[training]\nbatch_size = 'many'", "training.batch_size = 'many'"),
        ("[training]\nbatch_size = 0", "greater than or equal to 1"),
        ("[training]\nprecision = 'float8'", "'auto', 'float32' or 'bfloat16'"),
        ("budget = 'soon'", "cannot read the budget 'soon'"),
        ("budget = 3", "3 is no budget"),
        ("seed = -1", "seed = -1"),
        ("[schedule]\nname = 'muon'", "muon is no schedule"),
        ("[[callbacks]]\nname = 'muon'", "muon is no callback"),
        ("[schedule]\ndecay = 0.1", "schedule"),
        ("schedule = [1]", "schedule"),
        ("x = ", "not valid TOML"),
    ],
)
def test_mistakes_in_files_name_the_key(tmp_path, text, says):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        Recipe.read(path)
    assert says in str(caught.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(RecipeError, match="cannot read"):
        Recipe.read(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        Recipe.read(tmp_path / "binary.toml")


def test_text_that_no_arm_can_spell():
    recipe = Recipe.parse("wsd:shape=cosine")
    assert recipe.schedule.options["shape"] == "cosine"
    choice = recipe.schedule.model_copy(update={"options": {"shape": "a+b"}})
    with pytest.raises(RecipeError, match="cannot be spelled"):
        str(choice)


def _option(option: catalog.Option) -> st.SearchStrategy:
    if option.choices:
        return st.sampled_from(option.choices)
    if option.type == "bool":
        return st.booleans()
    low = option.low if option.low is not None else -1e6
    high = option.high if option.high is not None else 1e6
    if option.type == "int":
        return st.integers(int(low), int(high))
    if option.type == "float":
        return st.floats(low, high, allow_nan=False)
    return st.text(string.ascii_letters, min_size=1).filter(
        lambda text: text.lower() not in ("true", "false", "nan", "inf")
    )


@st.composite
def recipes(draw):
    cards = catalog.load()
    chosen = {}
    for slot in catalog.ONE_PLACE_SLOTS:
        names = [card.name for card in cards.values() if card.slot == slot]
        if names and draw(st.booleans()):
            chosen[slot] = draw(st.sampled_from(names))
    names = [*chosen.values()]
    names += draw(st.lists(st.sampled_from([c.name for c in cards.values() if c.slot == "callbacks"]), unique=True))
    fields = {}
    for name in names:
        options = {key: draw(_option(o)) for key, o in cards[name].options.items() if draw(st.booleans())}
        choice = {"name": name, **options}
        if cards[name].slot == "callbacks":
            fields.setdefault("callbacks", []).append(choice)
        else:
            fields[cards[name].slot] = choice
    amount = draw(st.floats(1, 1e20))
    return Recipe.parse(
        budget=Budget(amount, draw(st.sampled_from(UNITS))), seed=draw(st.integers(0, 2**63 - 1)), **fields
    )


@settings(max_examples=60)
@given(recipes())
def test_arms_and_recipes_round_trip(recipe):
    slots = parse_arm(recipe.arm)
    again = Recipe.parse(recipe.arm, budget=recipe.budget, seed=recipe.seed)
    assert again == recipe
    assert set(slots) <= set(catalog.SLOTS)


@settings(max_examples=60)
@given(recipes())
def test_toml_round_trips(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe.toml(), encoding="utf-8")
    assert Recipe.read(path) == recipe
    assert Recipe.read(path).toml() == recipe.toml()


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_any_text_is_a_recipe_or_a_user_error(text):
    with contextlib.suppress(UserError):
        assert Recipe.parse(text).arm


def test_choices_are_all_that_takes_part():
    arm = "z_loss_penalty+muon+gradient_noise+wsd:decay=0.1"
    assert [str(choice) for choice in choices_of(arm)] == ["z_loss_penalty", "gradient_noise", "muon", "wsd:decay=0.1"]
    names = [choice.name for choice in Recipe.parse(arm).choices]
    assert names == ["muon", "wsd", "cross_entropy", "gradient_noise", "z_loss_penalty"]


def test_one_schedule_and_nothing_else():
    assert str(parse_schedule("wsd:decay=0.1", where="here", fix="Do that.")) == "wsd:decay=0.1"
    for arm in ("muon", "muon+wsd", "wsd+z_loss_penalty"):
        with pytest.raises(RecipeError, match=r"is not one schedule \(here\)\nDo that"):
            parse_schedule(arm, where="here", fix="Do that.")
