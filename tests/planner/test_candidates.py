"""Which size: more of anything is never worth less, the choice is the best, measuring is cheap, memory is kept."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.errors import MachineError
from thalweg.models.ladder import LADDER
from thalweg.planner import assumptions, rules, which_laws
from thalweg.planner.sizes import rung

FIXED = {"data": {"context": 32}, "training": {"batch_size": 8}}


# -- more is never worth less ----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.floats(10, 1e5), st.floats(1, 50), st.floats(0.01, 0.9), st.floats(0, 1e-9), st.sampled_from([1e6, 1e8, 1e10])
)
def test_more_seconds_never_choose_a_smaller_model(made_up, seconds, more, efficiency, optimizer, tokens):
    ranks = []
    for amount in (seconds, seconds * more):
        watch = made_up.stopwatch(efficiency, optimizer=optimizer, free=True)
        fields = {"budget": f"{amount:.3f}s", "training": {"compile": "off"}}
        ranks.append(made_up.rank(made_up.plan(store=made_up.corpus(tokens), measure=watch, **fields)))
    assert ranks[0] <= ranks[1]


@settings(max_examples=20)
@given(st.floats(0, 4), st.floats(1, 100), st.sampled_from(["steps", "tokens", "epochs", "flops"]))
def test_more_of_any_budget_never_chooses_a_smaller_model(made_up, scale, more, unit):
    start = {"steps": 20, "tokens": 1e5, "epochs": 0.1, "flops": 1e12}[unit] * 10**scale
    store = made_up.corpus(5e6)
    plans = [made_up.plan(store=store, budget=f"{amount:.6f} {unit}") for amount in (start, start * more)]
    assert made_up.rank(plans[0]) <= made_up.rank(plans[1])
    # A larger model may read fewer tokens for more FLOPs.
    assert unit == "flops" or plans[0]["chosen"]["tokens"] <= plans[1]["chosen"]["tokens"]


def test_budgets_span_the_ladder(made_up):
    ranks = [made_up.rank(made_up.plan(budget=budget)) for budget in ("20s", "10h", "100h", "10000h")]
    assert ranks == sorted(set(ranks))
    flops = [made_up.rank(made_up.plan(budget=f"{amount} flops")) for amount in (1e12, 1e14, 1e16, 1e19)]
    assert flops == sorted(set(flops))


# -- the choice is the best ------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["30s", "2min", "1h"])
def test_a_time_budget_buys_the_least_predicted_loss(made_up, budget):
    plan = made_up.plan(budget=budget, measure=made_up.stopwatch(0.1, free=True), training={"compile": "off"})
    seconds = {"30s": 30, "2min": 120, "1h": 3600}[budget] - assumptions.CLOSING_SECONDS
    losses = {}
    for shape in LADDER:
        size = rung(shape, 4096)
        tokens = 0.1 * 1e11 / size.flops(256) * seconds * (1 - assumptions.EVALUATION_SHARE)
        losses[shape.name] = rules.predicted_bits_per_byte(
            size.law_parameters, tokens, 1e9, which_laws.built_in()
        ).value
    assert plan["chosen"]["model"] == min(losses, key=losses.get)
    for row in plan["candidates"]:
        assert row["predicted_bits_per_byte"] == pytest.approx(losses[row["model"]], rel=0.03)
        assert row["low"] < row["predicted_bits_per_byte"] < row["high"]


def test_a_counted_budget_takes_the_size_that_the_law_pairs_with_it(made_up):
    plan = made_up.plan(budget="20M tokens")
    paired = rules.paired_parameters(20e6, 1e9, which_laws.built_in())
    distance = {shape.name: abs(math.log(rung(shape, 4096).law_parameters / paired)) for shape in LADDER}
    assert plan["chosen"]["model"] == min(distance, key=distance.get)
    assert "law pairs" in plan["reasons"]["model"]


def test_a_machine_that_wastes_large_models_gets_a_small_one(made_up):
    even = made_up.plan(budget="10h", measure=made_up.stopwatch(0.3, free=True))
    watch = made_up.stopwatch(0.3, free=True, slower=lambda size: 30.0 if size.parameters > 6e5 else 1.0)
    uneven = made_up.plan(budget="10h", measure=watch)
    assert made_up.rank(uneven) < made_up.rank(even)
    assert uneven["chosen"]["parameters"] < 6e5 < even["chosen"]["parameters"]


def test_repeated_data_wants_more_decay_and_promises_less(made_up):
    small = {"store": made_up.corpus(1e6), "model": "1M"}
    once, often = made_up.plan(budget="0.9 epochs", **small), made_up.plan(budget="12 epochs", **small)
    assert often["chosen"]["weight_decay"] > once["chosen"]["weight_decay"]
    assert "times" in often["reasons"]["weight_decay"]
    fresh = made_up.plan(budget="12M tokens", store=made_up.corpus(1e9), model="1M")
    assert often["chosen"]["predicted_bits_per_byte"] > fresh["chosen"]["predicted_bits_per_byte"]
    assert fresh["chosen"]["weight_decay"] == once["chosen"]["weight_decay"]


# -- measuring -------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.floats(10, 20_000), st.floats(0.1, 0.9), st.floats(0, 1e-9))
def test_measuring_costs_little(made_up, seconds, efficiency, optimizer):
    watch = made_up.stopwatch(efficiency, optimizer=optimizer)
    made_up.plan(budget=f"{seconds:.3f}s", measure=watch, training={"compile": "off"})
    assert watch.spent <= 0.05 * seconds
    assert len(watch.timed) == len(set(watch.timed)) <= 3


def test_the_sizes_near_the_optimum_are_measured(made_up):
    watch = made_up.stopwatch(0.3)
    plan = made_up.plan(budget="1h", measure=watch, training={"compile": "off"})
    measured = [made_up.names.index(row["model"]) for row in plan["candidates"] if row["measured"]]
    assert len(measured) == 3
    assert max(measured) - min(measured) == 2
    assert made_up.rank(plan) in measured
    assert plan["chosen"]["tokens_per_second"] == pytest.approx(
        0.3e11 / rung(LADDER[made_up.rank(plan)], 4096).flops(512), rel=0.1
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
    assert chosen["tokens_per_second"] == pytest.approx(
        assumptions.EFFICIENCY["cpu"] * 1e11 / rung(LADDER[0], 4096).flops(32)
    )
    long = made_up.stopwatch()
    made_up.plan(budget="100000 steps", measure=long)
    assert len(long.timed) == 1


def test_the_same_speeds_give_the_same_plan(made_up):
    plans = [made_up.plan(budget="7min", measure=made_up.stopwatch(0.13, optimizer=1e-10)) for _ in range(2)]
    assert plans[0] == plans[1]


# -- memory ----------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.floats(0.7e9, 6e10), st.floats(1, 10), st.sampled_from(["100h", "1e20 flops", "10000M tokens"]))
def test_less_memory_never_chooses_a_larger_model(made_up, memory, more, budget):
    plans = [made_up.plan(budget=budget, memory=amount) for amount in (memory, memory * more)]
    assert made_up.rank(plans[0]) <= made_up.rank(plans[1])
    chosen = plans[0]["chosen"]
    size = rung(LADDER[made_up.rank(plans[0])], 4096)
    assert size.bytes(chosen["micro_batch"] * chosen["context"], "cpu") <= memory


def test_memory_is_told_in_the_reason(made_up):
    plan = made_up.plan(budget="100h", memory=1e9)
    left_out = made_up.names[len(plan["candidates"])]
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
