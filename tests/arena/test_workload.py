"""Units of a workload: what arms share, what they do not, and what makes two runs the same run."""

from __future__ import annotations

import pytest

from thalweg.arena.unit import Unit, perform
from thalweg.arena.workload import TUNING_SEED, Workload, with_options
from thalweg.errors import ArenaError, RecipeError


def test_arms_share_all_but_what_is_theirs(workload):
    first, second = workload.unit("adamw+linear", 0), workload.unit("muon+cosine", 0)
    shared = ("model", "context", "batch_size", "micro_batch", "precision", "evaluations", "evaluation_tokens", "steps")
    assert [first.plan["chosen"][name] for name in shared] == [second.plan["chosen"][name] for name in shared]
    assert first.recipe.seed == second.recipe.seed == 0
    assert first.recipe.data == second.recipe.data
    assert first.plan["chosen"]["peak_lr"] != second.plan["chosen"]["peak_lr"]
    assert second.plan["chosen"]["optimizer"] == "muon"
    assert second.plan["chosen"]["schedule"] == "cosine"


def test_nothing_is_left_to_a_planner(workload):
    recipe = workload.unit("adamw+linear", 3).recipe
    training = recipe.training
    assert None not in (training.batch_size, training.micro_batch, training.peak_lr, training.weight_decay)
    assert (training.precision, training.compile) != ("auto", "auto")
    assert recipe.model == "0.2M"
    assert recipe.seed == 3


def test_the_key_is_that_of_the_experiment(workload):
    unit = workload.unit("adamw+linear", 0)
    assert unit.key == workload.unit("adamw+linear", 0).key == workload.unit("linear+adamw", 0).key
    different = [
        workload.unit("adamw+linear", 1),
        workload.unit("adamw+linear:warmup=0.1", 0),
        workload.unit("adamw+linear", 0, {"peak_lr": 0.001}),
        workload.unit("adamw+linear", 0, tuning=True),
        unit.on(threads=unit.plan["chosen"]["threads"] + 1, place=""),
    ]
    assert len({unit.key, *(other.key for other in different)}) == 6
    # Where it runs matters only where time is what is spent.
    assert unit.on(1, "here").key == unit.on(1, "there").key
    assert len(unit.key) == 16


def test_the_key_follows_the_code(workload, monkeypatch):
    before = workload.unit("adamw+linear", 0).key
    monkeypatch.setattr("thalweg.arena.unit.method_hash", lambda names: "other")
    assert workload.unit("adamw+linear", 0).key != before


def test_tuned_values_are_written_into_the_recipe(workload):
    unit = workload.unit("adamw+wsd", 0, {"peak_lr": 0.002, "weight_decay": 0.05, "wsd:decay": 0.3})
    assert unit.recipe.training.peak_lr == 0.002
    assert unit.recipe.training.weight_decay == 0.05
    assert str(unit.recipe.schedule) == "wsd:decay=0.3"
    assert unit.plan["chosen"]["peak_lr"] == 0.002


def test_tuning_looks_at_the_other_half(workload):
    report, tune = workload.unit("adamw+linear", 0), workload.unit("adamw+linear", TUNING_SEED, tuning=True)
    assert (report.recipe.data.evaluate_on, tune.recipe.data.evaluate_on) == ("reporting", "tuning")


def test_a_unit_travels_as_data(workload):
    unit = workload.unit("adamw+wsd:decay=0.3", 1)
    again = Unit.from_dict(unit.to_dict())
    assert again == unit
    assert again.key == unit.key
    # Who receives it looks where the sender will look, whatever the sources are by then.
    assert Unit.from_dict({**unit.to_dict(), "key": "0123"}).folder.name == "0123"


def test_a_unit_is_performed_once(workload):
    unit = workload.unit("adamw+linear", 0)
    assert unit.state() == "new"
    perform(unit)
    assert unit.state() == "finished"
    lines = (unit.folder / "metrics.jsonl").read_text()
    assert not (unit.folder / "checkpoints").exists()
    assert not (unit.folder / "report.html").exists()
    perform(unit)
    assert (unit.folder / "metrics.jsonl").read_text() == lines
    # 12 steps pay for the fewest evaluations only.
    assert lines.count('"evaluation"') == 3


def test_with_options():
    assert with_options("adamw+wsd:floor=0.1", {"wsd:decay": 0.3}) == "adamw+wsd:decay=0.3,floor=0.1"
    assert with_options("adamw+z_loss_penalty", {}) == "adamw+z_loss_penalty"


def test_parsing_workloads():
    base = Workload("1M", "stdlib", "600 steps", {"training.clip": 0.5})
    found = Workload.parse("model=4M, corpus=b/", base)
    assert (found.model, found.corpus, found.budget, found.settings) == ("4M", "b/", "600 steps", base.settings)
    for text in ("model", "model=", "model=1M,model=2M", "size=4M"):
        with pytest.raises(ArenaError, match="--workload"):
            Workload.parse(text, base)


def test_what_a_comparison_decides_is_not_set():
    with pytest.raises(ArenaError, match="--budget"):
        Workload("1M", "stdlib", "600 steps", {"budget": "5 steps"})


def test_mistakes_in_settings(workload):
    with pytest.raises(RecipeError, match="no key"):
        Workload("1M", "stdlib", "600 steps", {"training.clipp": 0.5}).recipe("adamw")
