"""Runs that go on from other runs: what is carried over, what is not, and that the old run stays as it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thalweg.errors import BudgetError, RunError
from thalweg.recipe import Recipe
from thalweg.runs import Run
from thalweg.sessions.extend import ancestor, anneal, continued_recipe, extend, left, spent
from thalweg.sessions.train import resume, train
from thalweg.training.checkpoints import read_state


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file of a run by its hash."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in Run.open(folder).metrics("step")]


@pytest.fixture(scope="module")
def trunk(small, tmp_path_factory):  # type: ignore[no-untyped-def]
    """20 steps of wsd with half of them decaying; every checkpoint kept."""
    folder = tmp_path_factory.mktemp("trunk") / "run"
    train(small("adamw+wsd:decay=0.5", budget="20 steps", training__keep=50), folder, quiet=True)
    return folder


def test_the_end_of_the_trunk_is_kept(small, tmp_path):
    """With keep=1 the checkpoint at the end of the trunk survives all later ones."""
    train(small("adamw+wsd:decay=0.5", budget="20 steps", training__keep=1), tmp_path / "run", quiet=True)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept == ["step-00000010", "step-00000020"]
    assert (tmp_path / "run" / "checkpoints" / "stable").resolve().name == "step-00000010"
    assert ancestor(tmp_path / "run", "stable").step == 10


def test_a_schedule_without_a_trunk_has_no_stable_checkpoint(small, tmp_path):
    train(small("adamw+cosine"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "checkpoints" / "stable").exists()
    with pytest.raises(RunError, match="no stable checkpoint"):
        ancestor(tmp_path / "run", "stable")
    assert ancestor(tmp_path / "run").step == 12


def test_going_on_with_the_same_schedule_is_the_longer_run(trunk, small, tmp_path):
    """From the end of the trunk, a constant rate over the next steps is what a longer trunk does, bit for bit."""
    fields = Run.open(trunk).recipe.model_dump()
    longer = Recipe.validated({**fields, "budget": "30 steps", "schedule": "wsd:decay=0.0"}, where="test")
    # wsd warms up over a share of the budget: the same number of steps in both.
    longer = Recipe.validated(
        {**longer.model_dump(), "schedule": f"wsd:decay=0.0,warmup={0.05 * 20 / 30!r}"}, where="test"
    )
    whole = train(longer, tmp_path / "whole", quiet=True)
    part = extend(
        trunk, "+20 steps", schedule="wsd:decay=0.0,warmup=0.0", start="stable", out=tmp_path / "part", quiet=True
    )
    assert losses(part.folder) == losses(whole.folder)[10:]
    ends = [load_file(result.checkpoint / "model.safetensors") for result in (whole, part)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_run_extended_to_a_budget_is_the_run_planned_for_it(trunk, small, tmp_path):
    """From the trunk by default, with the decay counted over all steps: bit for bit the run of 30 steps."""
    whole = train(
        small(f"adamw+wsd:decay=0.4,warmup={0.05 * 20 / 30!r}", budget="30 steps"), tmp_path / "whole", quiet=True
    )
    found = extend(trunk, "30 steps", out=tmp_path / "found", quiet=True)
    recipe = Run.open(found.folder).recipe
    assert recipe.start is not None
    assert (recipe.start.step, str(recipe.budget)) == (10, "20 steps")
    assert str(recipe.schedule) == "wsd_s:decay=0.6,floor=0.0,shape=linear,warmup=0.0"
    assert losses(found.folder) == losses(whole.folder)[10:]
    assert found.bits_per_byte == whole.bits_per_byte


def test_budgets_of_continuations(trunk, small, tmp_path):
    end, middle = ancestor(trunk, "last"), ancestor(trunk)
    assert (end.step, end.stable, middle.step, middle.stable) == (20, False, 10, True)
    assert str(left(end, "+20 steps")) == "20 steps"
    assert str(left(end, "50 steps")) == "30 steps"
    assert str(left(middle, "50 steps")) == "40 steps"
    assert left(end, "10000 tokens").amount == 10000 - 20 * 8 * 32
    assert left(end, "1e15 flops").amount == pytest.approx(1e15 - end.state["flops"])
    assert left(end, "1h").amount == pytest.approx(3600 - end.state["seconds"])
    assert left(end, "9 epochs").amount == pytest.approx(9 - spent(end, "tokens") / _epoch(trunk))
    with pytest.raises(BudgetError, match=r"20 steps in all are spent: step 20") as caught:
        left(end, "20 steps")
    assert '"+20 steps"' in str(caught.value.fix)
    # What an ancestor spent after the checkpoint that was gone on from does not count.
    second = extend(trunk, "+6 steps", out=tmp_path / "second", quiet=True)
    assert spent(ancestor(second.folder, "last"), "steps") == 16


def _epoch(folder: Path) -> float:
    chosen = Run.open(folder).plan["chosen"]
    return float(chosen["tokens"] / chosen["epochs"])


def test_the_old_run_is_only_read(trunk, tmp_path):
    before = fingerprint(trunk)
    found = extend(trunk, "+6 steps", start="last", out=tmp_path / "next", quiet=True)
    assert fingerprint(trunk) == before
    assert found.step == 6
    start = Run.open(found.folder).recipe.start
    assert start is not None
    assert (start.step, start.tokens, start.skip) == (20, 20 * 8 * 32, 20)
    first = next(Run.open(found.folder).metrics("step"))
    # Straight down from the peak, and the model knows what it knew.
    assert first["lr"] == pytest.approx(0.005 * 5 / 6)
    assert first["loss"] < losses(trunk)[0] - 0.5


def test_lineage_grows(trunk, tmp_path):
    second = extend(trunk, "+6 steps", start="last", out=tmp_path / "second", quiet=True)
    third = extend(second.folder, "+4 steps", out=tmp_path / "third", quiet=True)
    told = json.loads((third.folder / "lineage.json").read_text())
    assert [(entry["step"], entry["budget"]) for entry in told] == [(20, "20 steps"), (6, "6 steps")]
    assert told[1]["bits_per_byte"] == second.bits_per_byte
    start = Run.open(third.folder).recipe.start
    assert start is not None
    assert (start.tokens, start.skip) == (26 * 8 * 32, 26)
    assert "second" in (third.folder / "report.html").read_text()


def test_a_continuation_resumes_bit_for_bit(trunk, tmp_path):
    recipe = continued_recipe(ancestor(trunk, "last"), "+12 steps")
    whole = train(recipe, tmp_path / "whole", quiet=True)
    train(recipe, tmp_path / "cut", quiet=True)
    # As a kill after step 8 leaves it: the checkpoints after that and the end were never written.
    folder = tmp_path / "cut"
    (folder / "checkpoints" / "latest").unlink()
    import shutil

    shutil.rmtree(folder / "checkpoints" / "step-00000012")
    lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"finish"' not in line]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    again = resume(folder, quiet=True)
    assert losses(again.folder) == losses(whole.folder)


def test_the_optimizer_remembers(trunk):
    from thalweg.sessions.assemble import assemble
    from thalweg.sessions.extend import inherit
    from thalweg.sessions.train import make_plan
    from thalweg.training.parallel import Parallel

    recipe = continued_recipe(ancestor(trunk, "last"), "+6 steps")
    recipe = Recipe.validated(
        {**recipe.model_dump(), "training": {**recipe.training.model_dump(), "weight_decay": 0.3}}, where="test"
    )
    plan, store = make_plan(recipe, quiet=True)
    trainer = assemble(recipe, plan, store, Run(trunk.parent / "unused"), Parallel("cpu"), started=0.0, quiet=True)
    assert recipe.start is not None
    inherit(trainer, recipe.start)
    state = read_state(ancestor(trunk, "last").checkpoint)["optimizer"]["state"]
    own = trainer.optimizer.state_dict()["state"]
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key]["exp_avg"], state[key]["exp_avg"]) for key in state)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.3}


def test_a_new_corpus_is_mixed_with_the_old(trunk, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    for index in range(40):
        (new / f"{index}.txt").write_text(f"{index} " + "entirely different letters zq xj kv " * 60)
    found = extend(trunk, "+12 steps", corpus=str(new), replay=0.25, out=tmp_path / "mixed", quiet=True)
    recipe = Run.open(found.folder).recipe
    assert recipe.start is not None
    assert (recipe.start.replay, recipe.start.skip) == (0.25, 0)
    assert recipe.data.corpus == str(new)
    values = losses(found.folder)
    assert values[-1] < values[0]


def test_annealing_leaves_the_trunk_at_several_budgets(trunk, tmp_path):
    from thalweg.reports.branches import write_branches

    before = fingerprint(trunk)
    results = anneal(trunk, [0.5, 1.0], decay=0.5, out=tmp_path / "ends", quiet=True)
    assert fingerprint(trunk) == before
    # Half the budget is 10 steps, of which 5 decay: from the checkpoint of step 4. The whole: 10 of 20, from the one
    # that was kept at the end of the trunk.
    starts = [Run.open(result.folder).recipe.start for result in results]
    assert [start.step for start in starts if start] == [4, 10]
    assert [result.step for result in results] == [6, 10]
    rates = [line["lr"] / 0.005 for line in Run.open(results[0].folder).metrics("step")]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0], abs=1e-9)
    page = write_branches([result.folder for result in results], tmp_path / "ends").read_text()
    assert "at-0.5" in page
    assert "<script" not in page


def test_mistakes(trunk, small, tmp_path):
    with pytest.raises(BudgetError):
        extend(trunk, "+soon", out=tmp_path / "x", quiet=True)
    with pytest.raises(BudgetError, match="--at"):
        anneal(trunk, [1.5], quiet=True)
    with pytest.raises(RunError, match="on the trunk"):
        anneal(trunk, [0.1], decay=0.5, quiet=True)
    with pytest.raises(RunError, match="no run folder"):
        extend(tmp_path / "nowhere", "+1 steps")
