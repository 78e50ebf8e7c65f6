"""Whole plans: what the recipe says wins, numbers agree, mistakes are found before time is spent."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg import catalog
from thalweg.cli.tables import show_plan
from thalweg.errors import BudgetError, DataError, MachineError, RecipeError
from thalweg.models.ladder import LADDER
from thalweg.planner import assumptions, rules
from thalweg.planner.sizes import rung
from thalweg.training.clock import Clock

FIXED = {"data": {"context": 32}, "training": {"batch_size": 8}}


# -- what the recipe says --------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    rows=st.integers(1, 40),
    micro=st.integers(1, 64),
    context=st.integers(8, 700),
    lr=st.floats(1e-5, 1),
    decay=st.floats(0, 5),
    budget=st.sampled_from(["2min", "50 steps", "3M tokens", "2 epochs", "1e14 flops"]),
)
def test_what_the_recipe_says_always_wins(made_up, rows, micro, context, lr, decay, budget):
    training = {"batch_size": rows, "micro_batch": micro, "peak_lr": lr, "weight_decay": decay}
    training |= {"precision": "bfloat16", "compile": "off"}
    plan = made_up.plan(
        "adamw+wsd:warmup=0.11", budget=budget, model="0.5M", store=made_up.corpus(2e6), training=training,
        data={"context": context},
    )  # fmt: skip
    chosen, reasons = plan["chosen"], plan["reasons"]
    found = [chosen[key] for key in ("model", "context", "batch_size", "peak_lr", "weight_decay", "precision")]
    assert found == ["0.5M", context, rows, lr, decay, "bfloat16"]
    assert (chosen["warmup"], chosen["schedule"], chosen["optimizer"]) == (0.11, "wsd:warmup=0.11", "adamw")
    assert chosen["compile"] is False
    assert chosen["micro_batch"] <= micro
    assert rows % chosen["micro_batch"] == 0
    said = ("model", "context", "batch_size", "peak_lr", "weight_decay", "warmup", "precision", "compile")
    assert {reasons[key] for key in said} == {rules.AS_SAID}


def test_one_line_of_reason_for_every_decision(made_up):
    plan = made_up.plan(budget="2min")
    for key in ("model", "context", "batch_size", "peak_lr", "weight_decay", "warmup", "schedule", "optimizer"):
        assert 5 < len(plan["reasons"][key]) < 160
        assert "\n" not in plan["reasons"][key]
    assert set(plan["reasons"]) < set(plan["chosen"])


@settings(max_examples=25)
@given(st.integers(1, 12), st.sampled_from(["2min", "500 steps", "30M tokens"]))
def test_ranks_share_a_batch_equally(made_up, ranks, budget):
    plan = made_up.plan(budget=budget, ranks=ranks)
    share, remainder = divmod(plan["chosen"]["batch_size"], ranks)
    assert remainder == 0
    assert share % plan["chosen"]["micro_batch"] == 0


def test_ranks_on_a_cpu_divide_the_machine(made_up):
    one, two = (made_up.planner(budget="2min", ranks=ranks) for ranks in (1, 2))
    assert two.here.peak == one.here.peak / 2
    assert (one.here.threads, two.here.threads) == (2, 1)
    assert two.plan()["machine"]["peak_flops"]["float32"] == 5e10


def test_precision_follows_the_machine(made_up):
    fast = made_up.machine(bfloat16_flops=3e11, bfloat16_pays=True)
    assert made_up.plan(budget="50 steps")["chosen"]["precision"] == "float32"
    plan = made_up.plan(budget="50 steps", profile=fast)
    assert plan["chosen"]["precision"] == "bfloat16"
    assert "3.0 times" in plan["reasons"]["precision"]
    assert plan["machine"]["peak_flops"] == {"float32": 1e11, "bfloat16": 3e11}


# -- steps -----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.one_of(
        st.builds("{} steps".format, st.integers(1, 400)),
        st.builds("{} tokens".format, st.integers(256, 90_000)),
        st.builds("{} epochs".format, st.floats(0.05, 3).map(lambda x: round(x, 3))),
        st.builds("{} flops".format, st.floats(2e9, 1e12)),
    )
)
def test_steps_are_counted_as_the_clock_counts(made_up, budget):
    plan = made_up.planner(budget=budget, model="0.2M", store=made_up.corpus(20_000), **FIXED)
    steps = plan.plan()["chosen"]["steps"]
    clock = Clock(plan.here.recipe.budget, epoch_tokens=19_999 // 32 * 32)
    flops = rung(LADDER[0], 4096).flops(32)
    while not clock.last:
        clock.begin_step(256, 256 * flops)
        clock.advance(256, 256 * flops)
    assert steps == clock.step


def test_numbers_agree_with_each_other(made_up):
    for budget in ("2min", "300 steps", "3 epochs"):
        chosen = made_up.plan(budget=budget, store=made_up.corpus(4e6))["chosen"]
        assert chosen["tokens"] == chosen["steps"] * chosen["batch_size"] * chosen["context"]
        assert chosen["epochs"] == pytest.approx(chosen["tokens"] / 4e6)
        assert chosen["seconds"] == pytest.approx(chosen["tokens"] / chosen["tokens_per_second"])
        assert chosen["predicted_low"] < chosen["predicted_bits_per_byte"] < chosen["predicted_high"]
        assert 0 < chosen["evaluation_tokens"] <= 4e6 / 20
    timed = made_up.plan(budget="2min")["chosen"]
    assert 0.9 * 120 < timed["seconds"] < 120


def test_a_slow_model_is_evaluated_once(made_up):
    assert made_up.plan(budget="2min")["chosen"]["evaluations"] == assumptions.EVALUATIONS
    assert made_up.plan(budget="2min", model="50M")["chosen"]["evaluations"] == 1


# -- plain data, and mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "budget", ["11s", "2min", "3h", "1 step", "9000 steps", "4096 tokens", "2 epochs", "1e15 flops"]
)
def test_a_plan_is_json(made_up, budget, capsys):
    plan = made_up.plan(budget=budget, store=made_up.corpus(3e6))
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan
    assert set(plan) == {"budget", "corpus", "chosen", "candidates", "reasons", "machine", "law", "data"}
    show_plan(plan)
    said = capsys.readouterr().err
    assert plan["chosen"]["model"] in said
    assert "bits per byte" in said


@pytest.mark.parametrize("budget", ["2min", "40 steps", "5M tokens", "2 epochs", "1e15 flops"])
@pytest.mark.parametrize(
    ("fields", "kind", "says"),
    [
        ({"training": {"batch_size": 100_000}}, DataError, "smaller than one batch"),
        ({"data": {"context": 900_000}}, DataError, "smaller than one batch"),
        ({"training": {"batch_size": 5}, "ranks": 2}, MachineError, "cannot be divided over 2 ranks"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(made_up, budget, fields, kind, says):
    watch = made_up.stopwatch()
    with pytest.raises(kind, match=says):
        made_up.plan(budget=budget, store=made_up.corpus(5e5), measure=watch, **fields)
    assert watch.timed == []


def test_an_optimizer_without_a_rate_is_found_before_anything_is_measured(made_up, monkeypatch):
    real = catalog.lookup
    bare = {"adamw": dataclasses.replace(real("adamw"), defaults={})}
    monkeypatch.setattr(catalog, "lookup", lambda name, **said: bare.get(name) or real(name, **said))
    watch = made_up.stopwatch()
    with pytest.raises(RecipeError, match="no peak learning rate"):
        made_up.plan("adamw", budget="2min", measure=watch)
    assert watch.timed == []
    assert made_up.plan("adamw", budget="2min", training={"peak_lr": 0.1})["chosen"]["weight_decay"] == 0.0


def test_a_corpus_with_short_held_out_text_gets_short_windows(made_up):
    assert made_up.plan(budget="20 steps", store=made_up.corpus(2000))["chosen"]["context"] < 100


@pytest.mark.parametrize("budget", ["10 tokens", "0.001 epochs", "1e6 flops"])
def test_a_budget_too_small_for_a_step(made_up, budget):
    with pytest.raises(BudgetError, match="does not pay for one step"):
        made_up.plan(budget=budget, model="0.2M", store=made_up.corpus(1e5), **FIXED)


def test_a_machine_that_seems_slow_gets_the_benefit_of_the_doubt(made_up):
    fields = {"model": "0.2M", "data": {"context": 256}, "training": {"batch_size": 8}}
    seconds = rung(LADDER[0], 4096).flops(256) * 2048 / 1e11  # of a step at the machine's peak
    usable = 20 - assumptions.CLOSING_SECONDS
    slow, hopeless = (made_up.stopwatch(share * seconds / usable, free=True) for share in (0.6, 0.2))
    assert made_up.plan(budget="20s", measure=slow, **fields)["chosen"]["steps"] == 1
    with pytest.raises(BudgetError, match="does not pay for one step"):
        made_up.plan(budget="20s", measure=hopeless, **fields)


def test_time_that_is_spent_before_training(made_up):
    with pytest.raises(BudgetError, match=r"preparing took 9\.0 s"):
        made_up.plan(budget="10s", seconds=1.0)
