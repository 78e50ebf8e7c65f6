"""Plans: what is chosen, what is refused, and that more of anything is never worth less."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg import catalog
from thalweg.cli.tables import show_plan
from thalweg.errors import BudgetError, DataError, MachineError, ModelError, RecipeError
from thalweg.models.ladder import LADDER
from thalweg.planner import assumptions, compiling, rules
from thalweg.planner.sizes import rung
from thalweg.training.clock import Clock

NAMES = [shape.name for shape in LADDER]
FIXED = {"data": {"context": 32}, "training": {"batch_size": 8}}


def rank(plan) -> int:  # type: ignore[no-untyped-def]
    """The rung that a plan has chosen, counted from the bottom of the ladder."""
    return NAMES.index(plan["chosen"]["model"])


# -- more is never worth less ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    st.floats(10, 1e5), st.floats(1, 50), st.floats(0.01, 0.9), st.floats(0, 1e-9), st.sampled_from([1e6, 1e8, 1e10])
)
def test_more_seconds_never_choose_a_smaller_model(made_up, seconds, more, efficiency, optimizer, tokens):
    ranks = []
    for amount in (seconds, seconds * more):
        watch = made_up.stopwatch(efficiency, optimizer=optimizer, free=True)
        fields = {"budget": f"{amount:.3f}s", "training": {"compile": "off"}}
        ranks.append(rank(made_up.plan(store=made_up.corpus(tokens), measure=watch, **fields)))
    assert ranks[0] <= ranks[1]


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 4), st.floats(1, 100), st.sampled_from(["steps", "tokens", "epochs", "flops"]))
def test_more_of_any_budget_never_chooses_a_smaller_model(made_up, scale, more, unit):
    start = {"steps": 20, "tokens": 1e5, "epochs": 0.1, "flops": 1e12}[unit] * 10**scale
    store = made_up.corpus(5e6)
    plans = [made_up.plan(store=store, budget=f"{amount:.6f} {unit}") for amount in (start, start * more)]
    assert rank(plans[0]) <= rank(plans[1])
    assert plans[0]["chosen"]["tokens"] <= plans[1]["chosen"]["tokens"]


def test_budgets_span_the_ladder(made_up):
    ranks = [rank(made_up.plan(budget=budget)) for budget in ("20s", "10h", "100h", "10000h")]
    assert ranks == sorted(set(ranks))
    flops = [rank(made_up.plan(budget=f"{amount} flops")) for amount in (1e12, 1e14, 1e16, 1e19)]
    assert flops == sorted(set(flops))


# -- the choice is the best -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["30s", "2min", "1h"])
def test_a_time_budget_buys_the_least_predicted_loss(made_up, budget):
    plan = made_up.plan(budget=budget, measure=made_up.stopwatch(0.1, free=True), training={"compile": "off"})
    seconds = {"30s": 30, "2min": 120, "1h": 3600}[budget] - assumptions.CLOSING_SECONDS
    losses = {}
    for shape in LADDER:
        size = rung(shape, 4096)
        tokens = 0.1 * 1e11 / size.flops(256) * seconds * (1 - assumptions.EVALUATION_SHARE)
        losses[shape.name] = rules.predicted_bits_per_byte(size.law_parameters, tokens, 1e9).value
    assert plan["chosen"]["model"] == min(losses, key=losses.get)
    for row in plan["candidates"]:
        assert row["predicted_bits_per_byte"] == pytest.approx(losses[row["model"]], rel=0.03)
        assert row["low"] < row["predicted_bits_per_byte"] < row["high"]


def test_a_counted_budget_takes_the_size_that_the_law_pairs_with_it(made_up):
    plan = made_up.plan(budget="20M tokens")
    paired = rules.paired_parameters(20e6, 1e9)
    distance = {shape.name: abs(math.log(rung(shape, 4096).law_parameters / paired)) for shape in LADDER}
    assert plan["chosen"]["model"] == min(distance, key=distance.get)
    assert "law pairs" in plan["reasons"]["model"]


def test_a_machine_that_wastes_large_models_gets_a_small_one(made_up):
    even = made_up.plan(budget="10h", measure=made_up.stopwatch(0.3, free=True))
    watch = made_up.stopwatch(0.3, free=True, slower=lambda size: 30.0 if size.parameters > 6e5 else 1.0)
    uneven = made_up.plan(budget="10h", measure=watch)
    assert rank(uneven) < rank(even)
    assert uneven["chosen"]["model"] in watch.timed


def test_repeated_data_wants_more_decay_and_promises_less(made_up):
    small = {"store": made_up.corpus(1e6), "model": "1M"}
    once, often = made_up.plan(budget="0.9 epochs", **small), made_up.plan(budget="12 epochs", **small)
    assert often["chosen"]["weight_decay"] > once["chosen"]["weight_decay"]
    assert "times" in often["reasons"]["weight_decay"]
    fresh = made_up.plan(budget="12M tokens", store=made_up.corpus(1e9), model="1M")
    assert often["chosen"]["predicted_bits_per_byte"] > fresh["chosen"]["predicted_bits_per_byte"]
    assert fresh["chosen"]["weight_decay"] == once["chosen"]["weight_decay"]


# -- what the recipe says -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
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


@settings(deadline=None, max_examples=25)
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


# -- steps ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
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


# -- measuring ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.floats(10, 20_000), st.floats(0.1, 0.9), st.floats(0, 1e-9))
def test_measuring_costs_little(made_up, seconds, efficiency, optimizer):
    watch = made_up.stopwatch(efficiency, optimizer=optimizer)
    made_up.plan(budget=f"{seconds:.3f}s", measure=watch, training={"compile": "off"})
    assert watch.spent <= 0.05 * seconds
    assert len(watch.timed) == len(set(watch.timed)) <= 3


def test_the_sizes_near_the_optimum_are_measured(made_up):
    watch = made_up.stopwatch(0.3)
    plan = made_up.plan(budget="1h", measure=watch, training={"compile": "off"})
    measured = [NAMES.index(row["model"]) for row in plan["candidates"] if row["measured"]]
    assert len(measured) == 3
    assert max(measured) - min(measured) == 2
    assert rank(plan) in measured
    assert plan["chosen"]["tokens_per_second"] == pytest.approx(
        0.3e11 / rung(LADDER[rank(plan)], 4096).flops(512), rel=0.1
    )


def test_where_the_best_is_too_dear_to_time_a_smaller_one_is_timed(made_up):
    watch = made_up.stopwatch()
    plan = made_up.plan(budget="70s", store=made_up.corpus(1e9, vocab_size=65_536), measure=watch)
    assert watch.timed == ["0.2M"]
    assert [row["measured"] for row in plan["candidates"]] == [True] + [False] * (len(plan["candidates"]) - 1)
    # The others are taken to use the machine as well as that one does.
    rates = [row["tokens_per_second"] * rung(LADDER[i], 65_536).flops(256) for i, row in enumerate(plan["candidates"])]
    assert rates == pytest.approx([0.2 * 1e11] * len(rates))
    assert watch.spent < 0.05 * 70


def test_a_run_of_moments_is_not_measured(made_up):
    watch = made_up.stopwatch()
    chosen = made_up.plan(budget="12 steps", model="0.2M", measure=watch, **FIXED)["chosen"]
    assert watch.timed == []
    assert chosen["tokens_per_second"] == pytest.approx(assumptions.EFFICIENCY * 1e11 / rung(LADDER[0], 4096).flops(32))
    long = made_up.stopwatch()
    made_up.plan(budget="100000 steps", measure=long)
    assert len(long.timed) == 1


def test_the_same_speeds_give_the_same_plan(made_up):
    plans = [made_up.plan(budget="7min", measure=made_up.stopwatch(0.13, optimizer=1e-10)) for _ in range(2)]
    assert plans[0] == plans[1]


# -- memory ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.floats(0.7e9, 6e10), st.floats(1, 10), st.sampled_from(["100h", "1e20 flops", "10000M tokens"]))
def test_less_memory_never_chooses_a_larger_model(made_up, memory, more, budget):
    plans = [made_up.plan(budget=budget, memory=amount) for amount in (memory, memory * more)]
    assert rank(plans[0]) <= rank(plans[1])
    chosen = plans[0]["chosen"]
    size = rung(LADDER[rank(plans[0])], 4096)
    assert size.bytes(chosen["micro_batch"] * chosen["context"], "cpu") <= memory


def test_memory_is_told_in_the_reason(made_up):
    plan = made_up.plan(budget="100h", memory=1e9)
    left_out = NAMES[len(plan["candidates"])]
    assert f"sizes from {left_out} up do not fit 0.9 GiB" in plan["reasons"]["model"]
    assert "fit" not in made_up.plan(budget="2min")["reasons"]["model"]


def test_each_rank_has_its_share_of_memory(made_up):
    one, four = (made_up.plan(budget="100h", memory=8e9, ranks=ranks) for ranks in (1, 4))
    assert len(four["candidates"]) < len(one["candidates"])
    sharded = made_up.plan(budget="100h", memory=8e9, ranks=4, training={"shard": True})
    assert len(sharded["candidates"]) > len(four["candidates"])


def test_little_memory_makes_micro_batches_small(made_up):
    roomy, tight = (made_up.plan(budget="20M tokens", model="5M", memory=memory)["chosen"] for memory in (8e9, 0.72e9))
    assert tight["micro_batch"] < roomy["micro_batch"]
    assert tight["batch_size"] == roomy["batch_size"]


@pytest.mark.parametrize("model", ["auto", "1B"])
def test_nothing_fits(made_up, model):
    with pytest.raises(MachineError, match="no size fits") as caught:
        made_up.plan(budget="2min", model=model, memory=1e8)
    assert "--memory" in caught.value.fix


# -- compiling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "lasting", "expected"), [(1.5, 30, True), (1.01, 100, False), (0.8, 1, False)])
def test_compiling_must_pay_back(made_up, monkeypatch, gain, lasting, expected):
    monkeypatch.setattr(compiling, "has_compiler", lambda device: True)
    watch = made_up.stopwatch(gain=gain, compiling=lasting)
    plan = made_up.plan(budget="1h", measure=watch)
    assert plan["chosen"]["compile"] is expected
    assert watch.timed[-1] == f"{plan['chosen']['model']}+compiled"
    assert "s to compile" in plan["reasons"]["compile"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"budget": "2min"}, "not worth trying"),
        ({"budget": "1e17 flops"}, "whatever this machine"),
        ({"budget": "1h", "training": {"compile": "off"}}, rules.AS_SAID),
    ],
)
def test_compiling_is_not_even_tried(made_up, fields, says):
    watch = made_up.stopwatch()
    plan = made_up.plan(measure=watch, **fields)
    assert plan["chosen"]["compile"] is False
    assert says in plan["reasons"]["compile"]
    assert not [name for name in watch.timed if "compiled" in name]


def test_a_compiler_that_fails_is_no_reason_to_fail(made_up, monkeypatch):
    monkeypatch.setattr(compiling, "has_compiler", lambda device: True)
    plan = made_up.plan(budget="1h", measure=made_up.stopwatch(gain=0))
    assert plan["chosen"]["compile"] is False
    assert "AssertionError" in plan["reasons"]["compile"]


def test_without_a_compiler(made_up, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    watch = made_up.stopwatch()
    plan = made_up.plan(budget="1h", measure=watch)
    assert plan["reasons"]["compile"] == "off: there is no C++ compiler here"
    assert not [name for name in watch.timed if "compiled" in name]
    with pytest.raises(MachineError, match=r"C\+\+ compiler"):
        made_up.plan(budget="1h", training={"compile": "on"})
    (tmp_path / "my-compiler").touch(mode=0o755)
    monkeypatch.setenv("CXX", "my-compiler -pipe")
    assert made_up.plan(budget="12 steps", training={"compile": "on"})["chosen"]["compile"] is True
    assert compiling.has_compiler(torch.device("cuda"))


# -- somebody's own model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A tiny Llama and a tiny GPT-2 as Hugging Face folders."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    llama = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=48,
    )  # fmt: skip
    gpt = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    made = {}
    for name, model in (("llama", LlamaForCausalLM(llama)), ("gpt2", GPT2LMHeadModel(gpt))):
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
    return made


@pytest.mark.parametrize("budget", ["30s", "40 steps", "1e12 flops"])
@pytest.mark.parametrize(("name", "longest"), [("llama", 48), ("gpt2", 64)])
def test_an_own_model_is_planned_without_a_forecast(made_up, folders, capsys, name, longest, budget):
    plan = made_up.plan(budget=budget, model=str(folders[name]), store=made_up.corpus(1e6, vocab_size=300))
    chosen = plan["chosen"]
    assert chosen["model"] == chosen["model_folder"] == str(folders[name])
    assert chosen["context"] == longest
    assert chosen["predicted_bits_per_byte"] is chosen["predicted_low"] is chosen["predicted_high"] is None
    assert [row["predicted_bits_per_byte"] for row in plan["candidates"]] == [None]
    assert chosen["steps"] >= 1
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan
    show_plan(plan)
    assert "No forecast" in capsys.readouterr().err


def test_an_own_model_is_counted_without_its_tables(made_up, folders):
    size = made_up.planner(model=str(folders["llama"]), store=made_up.corpus(1e6, vocab_size=300)).candidates.sizes[0]
    # Two blocks of four square and three feed-forward matrices with two norms, and the last norm.
    assert size.parameters == 2 * (4 * 32**2 + 3 * 32 * 64 + 2 * 32) + 32
    assert size.stored == size.parameters + 2 * 300 * 32
    assert size.flops(10) == 6 * (size.parameters + 300 * 32) + 12 * 2 * 32 * 10 / 2


def test_an_own_model_must_fit_the_recipe(made_up, folders):
    with pytest.raises(ModelError, match="the model knows 300"):
        made_up.plan(budget="40 steps", model=str(folders["gpt2"]))
    small = made_up.corpus(1e6, vocab_size=300)
    with pytest.raises(ModelError, match="longer than the 64"):
        made_up.plan(budget="40 steps", model=str(folders["gpt2"]), store=small, data={"context": 65})
    with pytest.raises(ModelError, match="no such model folder"):
        made_up.plan(budget="40 steps", model="no/where", store=small)


# -- plain data, and mistakes ---------------------------------------------------------------------------------------


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
