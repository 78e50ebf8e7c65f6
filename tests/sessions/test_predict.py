"""`predict` on runs whose law is known: the numbers it must find, and what it must refuse."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from thalweg.budget import Budget
from thalweg.errors import BudgetError, RecipeError, RunError, UserError
from thalweg.laws.lr_annealing import AnnealingLaw, warmup_steps
from thalweg.recipe import Choice, Recipe
from thalweg.reports import forecast as report
from thalweg.runs import Run
from thalweg.sessions.planned_rates import closed_forms, planned_rates
from thalweg.sessions.predict import SEARCHED, own_rates, predict, steps_of, warmup_of
from thalweg.sessions.run_curves import read

PEAK, TOKENS, BITS = 0.01, 2048, 0.49
TRUTH = AnnealingLaw(1.6, 2.0, 0.45, 0.5, momentum=0.98)
CHOSEN = {
    "parameters": 1_000_000,
    "context": 256,
    "batch_size": 8,
    "vocab_size": 4096,
    "optimizer": "adamw",
    "weight_decay": 0.1,
    "peak_lr": PEAK,
    "tokens": 800 * TOKENS,
    "epochs": 0.5,
}


def rates_of(schedule, steps):
    built = Choice.model_validate(schedule).build()
    return PEAK * np.array([built.factor(SimpleNamespace(progress=(step + 1) / steps)) for step in range(steps)])


def make_run(folder, schedule, steps=800, taken=None, every=20, noise=1e-3, seed=0, **changed):
    """A run folder as training would have left it, with losses of TRUTH."""
    rates = rates_of(schedule, steps)
    run = Run.create(folder)
    run.write_json("plan.json", {"chosen": CHOSEN | changed, "data": {"content_hash": "abc"}})
    losses = TRUTH.predict(rates, warmup=warmup_steps(rates))
    generator = np.random.default_rng(seed)
    for step in range(1, (taken or steps) + 1):
        spent = {"tokens": step * TOKENS, "seconds": 0.1 * step, "flops": 1e9 * step}
        # Measured before the step: after one less.
        loss = float(losses[max(step - 2, 0)] * np.exp(0.03 * generator.normal()))
        at = {"step": step, "progress": step / steps, **spent}
        run.append({"event": "step", **at, "lr": float(rates[step - 1]), "loss": loss, "bits_per_byte": BITS * loss})
        if step % every == 0 or step == steps:
            held_out = float(losses[step - 1] * np.exp(noise * generator.normal()))
            line = {"held_out_loss": held_out, "held_out_bits_per_byte": BITS * held_out}
            run.append({"event": "evaluation", "step": step, **spent, **line})
    run.close()
    run.write_recipe(Recipe.parse(f"adamw+{schedule}", budget=f"{steps} steps"))
    return run.folder


def final(schedule, steps=800):
    rates = rates_of(schedule, steps)
    return float(TRUTH.predict(rates, [steps], warmup_steps(rates))[0])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / "a", "cosine"), make_run(folder / "b<i>$x", "wsd:decay=0.2", seed=1)]


@pytest.fixture(scope="module")
def found(runs):
    return predict(runs, best=True)


def test_the_law_and_the_runs_own_end(found):
    assert found.measure == "held_out"
    assert found.law.momentum == 0.98
    assert found.law.predict(rates_of("cosine", 800), [800], 39)[0] == pytest.approx(final("cosine"), rel=2e-3)
    assert found.forecast.schedule == "cosine"
    assert found.forecast.steps[-1] == 800
    assert found.forecast.low[-1] < final("cosine") < found.forecast.high[-1]
    assert found.bits_per_nat == pytest.approx(BITS)
    assert found.notes == [SEARCHED]


def test_other_schedules_are_ranked_as_they_would_end(found):
    names = [standing.schedule for standing in found.standings]
    assert {"linear", "wsd", "constant", "uba"} <= set(names)
    assert {"cosine", "refined", "rewarm_redecay", "autolrs"}.isdisjoint(names)
    finals = [standing.final for standing in found.standings]
    assert finals == sorted(finals)
    for standing in found.standings:
        if standing.schedule in ("linear", "wsd", "constant", "uba"):
            truth = final(standing.schedule)
            assert standing.final == pytest.approx(truth, rel=4e-3)
            assert standing.low < truth < standing.high
            assert standing.difference_low < truth / final("cosine") - 1 < standing.difference_high


def test_the_search_finds_nothing_worse_than_what_was_compared(found):
    assert found.best.final <= min(standing.final for standing in found.standings) + 1e-9
    assert found.best_forecast.losses[-1] == pytest.approx(found.best.final)
    truth = final(found.best.schedule)
    assert found.best.low < truth < found.best.high
    assert truth < final("wsd")


def test_another_schedule_and_budget(runs):
    asked = predict(runs, schedule="linear:floor=0.1", budget=f"{1200 * TOKENS} tokens")
    assert asked.forecast.schedule == "linear:floor=0.1"
    assert asked.forecast.steps[-1] == 1200
    assert asked.forecast.final == pytest.approx(final("linear:floor=0.1", 1200), rel=5e-3)
    assert asked.best is None
    much = predict(runs, budget="4000 steps")
    assert any("times as far" in note for note in much.notes)


def test_an_unfinished_run_is_followed_to_its_end(runs, tmp_path):
    half = make_run(tmp_path / "half", "linear", taken=480, seed=5)
    asked = predict([half, runs[1]])
    (curve, _), _ = read([half, runs[1]])
    assert not curve.finished
    assert own_rates(curve) == pytest.approx(rates_of("linear", 800), abs=1e-9)
    assert asked.forecast.steps[-1] == 800
    assert asked.forecast.final == pytest.approx(final("linear"), rel=4e-3)


def test_training_losses_do_where_evaluations_are_few(tmp_path):
    folders = [
        make_run(tmp_path / str(seed), schedule, every=400, seed=seed)
        for seed, schedule in enumerate(("cosine", "wsd:decay=0.2"))
    ]
    asked = predict(folders)
    assert asked.measure == "train"
    assert asked.forecast.final == pytest.approx(final("cosine"), rel=0.015)
    assert asked.forecast.low[-1] < final("cosine") < asked.forecast.high[-1]
    with pytest.raises(UserError, match="at least 8 losses"):
        predict(folders, measure="held_out")


def test_one_run_says_that_it_is_one(tmp_path):
    alone = predict([make_run(tmp_path / "a", "cosine", noise=1e-4)])
    assert "one schedule only" in alone.notes[0]


def test_refusals(runs, tmp_path):
    with pytest.raises(UserError, match="never falls"):
        predict([make_run(tmp_path / "constant", "constant")])
    other = make_run(tmp_path / "other", "linear", parameters=4_000_000)
    plan = json.loads((other / "plan.json").read_text())
    (other / "plan.json").write_text(json.dumps(plan | {"data": {"content_hash": "xyz"}}))
    with pytest.raises(RunError, match="differ in parameters, corpus"):
        predict([runs[0], other])
    with pytest.raises(RecipeError, match="decides while it trains"):
        predict(runs, schedule="autolrs")
    with pytest.raises(RecipeError, match="not one schedule"):
        predict(runs, schedule="muon+cosine")
    with pytest.raises(RunError, match="no measure"):
        predict(runs, measure="validation")
    with pytest.raises(RunError, match="no run folder"):
        predict([tmp_path])
    with pytest.raises(BudgetError, match="cannot be foretold"):
        predict(runs, budget="1e30 flops")


def test_a_run_that_continues_another_is_refused(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "recipe", SimpleNamespace(start=SimpleNamespace(run="x")))
    with pytest.raises(RunError, match="continues another"):
        read([runs[0]])


@pytest.mark.parametrize(
    ("budget", "steps"),
    [("500 steps", 500), (f"{300 * TOKENS} tokens", 300), ("60s", 600), ("1e11 flops", 100), ("1 epoch", 1600)],
)
def test_budgets_in_steps(runs, budget, steps):
    assert steps_of(Budget.parse(budget), read([runs[0]])[0][0]) == steps


def test_planned_rates_are_those_that_training_takes(runs):
    (run,), _ = read([runs[1]])
    assert planned_rates(run.recipe.schedule, 800, run) == pytest.approx(run.rates, abs=1e-12)
    coarse = planned_rates(run.recipe.schedule, 800, run, points=100)
    assert coarse == pytest.approx(run.rates, abs=0.03 * PEAK)
    assert warmup_of(run) == 0.05
    assert all(choice.options == {} for choice in closed_forms(0.05) if choice.name != "infinite")
    assert {choice.options["warmup"] for choice in closed_forms(0.02) if choice.name != "refined"} == {0.02}


def test_forecasts_as_files(found, tmp_path):
    plain = found.to_dict()
    for ending in (".png", ".svg", ".html", ".json"):
        assert report.write(plain, tmp_path / f"forecast{ending}").stat().st_size > 1000
    assert (tmp_path / "forecast.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "forecast.json").read_text())["forecast"]["steps"][-1] == 800
    page = (tmp_path / "forecast.html").read_text()
    assert "b&lt;i&gt;$x" in page
    assert "<i>" not in page
    assert "<script" not in page
    assert f"{found.forecast.final * BITS:.4f}" in page
    with pytest.raises(RunError, match=r"\.txt"):
        report.write(plain, tmp_path / "forecast.txt")


def test_the_command(runs, tmp_path, capsys):
    from thalweg.cli.predict import run

    run([str(folder) for folder in runs], out=tmp_path / "a.json")
    printed = capsys.readouterr().out
    assert "cosine ends near" in printed
    assert "linear" in printed
    assert "95% intervals" in printed
    run([str(folder) for folder in runs], schedule="linear", json=True)
    assert json.loads(capsys.readouterr().out)["forecast"]["schedule"] == "linear"
