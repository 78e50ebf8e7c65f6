"""Wind tunnels of a tiny model: whole, interrupted, and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest

import thalweg
from thalweg.arena.grid import Sweep
from thalweg.arena.proxies import Pace, perform
from thalweg.arena.rate_sweep import beyond_edge, sweep_rates
from thalweg.arena.tunnel_memory import Memory
from thalweg.arena.wind_tunnel import wind_tunnel
from thalweg.errors import ArenaError, BudgetError, UserError
from thalweg.laws.corpus_laws import load
from thalweg.laws.rate_rule import RateRule
from thalweg.runs import Run

SETTINGS = {"data.tokenizer": "bpe:512", "data.context": 32, "data.held_out": 0.1, "training.batch_size": 8}
SIZES = ("0.2M", "0.35M", "1M")


@pytest.fixture
def tunnel(corpus, tmp_path):
    """A wind tunnel of FLOPs, which no clock disturbs: runs of 6 steps and more."""

    def make(budget=None, **options):
        budget = budget or smallest(make)
        said = {"settings": SETTINGS, "sizes": SIZES, "least_steps": 6, "jobs": 1, "quiet": True}
        places = {"out": tmp_path / "out", "runs": tmp_path / "runs"}
        return wind_tunnel(str(corpus), budget, **{**said, **places, **options})

    return make


def smallest(tunnel):
    """The budget that a refusal asks for."""
    with pytest.raises(BudgetError, match="6 runs for the rate, 6 for the law") as caught:
        tunnel("1e9 flops")
    return caught.value.fix.split("'")[1]


def finished(runs):
    """When each finished run was last written to, by its key."""
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in runs.glob("*/metrics.jsonl")
        if '"finish"' in path.read_text()
    }


def test_a_tunnel_and_what_plans_make_of_it(tunnel, tmp_path, corpus, monkeypatch, small):
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))
    recipe = small(data__tokenizer="bpe:512", training__peak_lr=None)
    before = thalweg.make_plan(recipe, quiet=True)[0]
    laws = tunnel()
    budget = float(smallest(tunnel).split()[0])
    assert load(tmp_path / "out" / "laws.json") == laws
    assert (tmp_path / "out" / "laws.svg").read_text().startswith("<?xml")
    assert len(laws.points) >= 6
    rule = laws.rates["muon"]
    assert len(rule.points) >= 6
    # Every run of the law had the rate of the rule, ended on its own schedule, and cost what FLOPs there were.
    runs = [Run.open(path) for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert len(runs) == len(laws.points) + len(rule.points)
    swept = {rate for _, rate, _ in rule.points}
    spent = 0.0
    for run in runs:
        chosen, last = run.plan["chosen"], list(run.metrics("step"))[-1]
        assert last["progress"] == 1.0
        spent += last["flops"]
        if run.recipe.training.peak_lr not in swept:
            assert run.recipe.training.peak_lr == pytest.approx(rule.at(chosen["width"]), rel=5e-3)
        assert len(list(run.metrics("evaluation"))) == 1
    assert 0.5 * budget < spent <= budget
    # "auto" finds the laws, and comparisons do not.
    after = thalweg.make_plan(recipe, quiet=True)[0]
    [kept] = (tmp_path / "cache" / "laws").iterdir()
    assert (before["law"]["origin"], after["law"]["origin"]) == ("built-in", str(kept))
    assert after["chosen"]["peak_lr"] == pytest.approx(rule.at(64), rel=5e-3)
    assert after["chosen"]["predicted_bits_per_byte"] != before["chosen"]["predicted_bits_per_byte"]
    named = thalweg.make_plan(small(laws=str(tmp_path / "out")), quiet=True)[0]
    assert named["law"]["origin"] == str(tmp_path / "out" / "laws.json")
    # The same again repeats nothing.
    stamps = finished(tmp_path / "runs")
    assert tunnel() == laws
    assert finished(tmp_path / "runs") == stamps


def test_an_interrupted_tunnel_goes_on(tunnel, tmp_path, monkeypatch):
    """Stopped after four runs: what was decided stays, and what was finished is not run again."""
    from thalweg.arena.local import Local

    submit, done = Local.submit, []

    def counting(self, unit):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(unit.key)
        return submit(self, unit)

    monkeypatch.setattr(Local, "submit", counting)
    with pytest.raises(KeyboardInterrupt):
        tunnel()
    first = json.loads((tmp_path / "out" / "tunnel.json").read_text())
    assert first["seconds"] > 0
    monkeypatch.setattr(Local, "submit", submit)
    stamps = finished(tmp_path / "runs")
    assert len(stamps) >= 3
    tunnel()
    second = json.loads((tmp_path / "out" / "tunnel.json").read_text())
    assert second["decided"]["sweep"] == first["decided"]["sweep"]
    assert second["seconds"] > first["seconds"]
    assert {key: when for key, when in finished(tmp_path / "runs").items() if key in stamps} == stamps


@pytest.mark.parametrize(
    ("budget", "options", "kind", "says"),
    [
        ("300 steps", {}, BudgetError, "cannot spend steps"),
        ("3 epochs", {}, BudgetError, "cannot spend epochs"),
        ("1h", {"sizes": ["0.2M", "0.35M"]}, ArenaError, "three sizes"),
        ("1h", {"least_steps": 0}, ArenaError, "0 steps"),
        ("1h", {"settings": {"training.peak_lr": 0.1}}, ArenaError, r"training\.peak_lr"),
        ("1h", {"arm": "muom"}, UserError, "muom"),
        ("1h", {"sizes": ["many"]}, UserError, "many"),
    ],
)
def test_mistakes(tunnel, budget, options, kind, says):
    with pytest.raises(kind, match=says):
        tunnel(budget, **options)


# -- the parts --------------------------------------------------------------------------------------------------


def test_a_sweep_tries_one_rate_beyond_an_edge():
    known = RateRule(0.02, 64, 0.5)
    asked = []

    def perform(keys):
        asked.append(keys)
        return {(size, rate): 2.0 + abs(rate - {0: 0.02, 1: 0.08}[size]) for size, rate in keys}

    rule = sweep_rates(Sweep((0, 1), 3, 1000, 0.0), {0: 64, 1: 64}, known, perform)
    assert asked == [[(0, 0.01), (0, 0.02), (0, 0.04), (1, 0.01), (1, 0.02), (1, 0.04)], [(1, 0.08)]]
    assert len(rule.points) == 7
    assert rule.source.startswith("7 runs of 1,000 tokens: best ")


def test_what_lies_beyond_an_edge():
    assert beyond_edge([(0.01, 2.0), (0.02, 1.9), (0.04, 2.0)]) is None
    assert beyond_edge([(0.01, 1.8), (0.02, 1.9), (0.04, 2.0)]) == 0.005
    assert beyond_edge([(0.01, 2.0), (0.02, 1.9), (0.04, None)]) is None
    assert beyond_edge([(0.01, 2.0), (0.02, None), (0.04, 1.9)]) == 0.08


def test_a_pace_is_learnt():
    pace = Pace(time.monotonic() + 10)
    assert not pace.too_late([4.0, 4.0], [], 1)
    pace.learn(1.0, 3.0)
    assert pace.factor == 1.0  # one run may have been unlucky
    pace.learn(1.0, 1.0)
    assert pace.factor == 2.0
    assert pace.too_late([4.0, 4.0], [], 1)
    assert not pace.too_late([4.0, 4.0], [], 2)
    assert pace.too_late([4.0], [5.0], 1)
    assert not Pace(float("inf")).too_late([1e9], [], 1)


class Slots:
    """An execution on which a run ends at once, and says that it took `seconds`."""

    def __init__(self, slots, pace, seconds):
        self.slots, self.threads, self.name = slots, 1, "made up"
        self.pace, self.seconds, self.submitted = pace, seconds, []

    def submit(self, unit):
        self.submitted.append(unit.key)
        self.pace.deadline -= self.seconds(unit.key) / self.slots
        done: Future[dict[str, str]] = Future()
        done.set_result({"status": "finished"})
        return done


def performed(costs, seconds, deadline, slots=1, known=()):
    """What `perform` submits and leaves out: a run costs what it says, and really takes `seconds` of its cost."""

    def unit(key):
        made = SimpleNamespace(key=key, state=lambda: "finished" if key in known else "new")
        made.on = lambda threads, place: made
        return made

    pace = Pace(time.monotonic() + deadline)
    learn = pace.learn
    pace.learn = lambda expected, taken: learn(expected, seconds(expected))
    board = SimpleNamespace(submitted=lambda *_: None, finished=lambda *_: None)
    execution = Slots(slots, pace, lambda key: seconds(costs[key]))
    outcomes, late = perform({key: unit(key) for key in costs}, costs, execution, pace, board, lambda key: ("", key))
    assert set(outcomes) | set(late) == set(costs)
    assert len(outcomes) + len(late) == len(costs)
    return execution.submitted, late


COSTS = {"a": 10.0, "b": 20.0, "c": 40.0, "d": 80.0, "e": 160.0}


def test_all_runs_in_their_order():
    """The cheap half grows, so that the pace is known; the rest falls, so that all ends together."""
    assert performed(COSTS, lambda cost: cost, 320) == (["a", "b", "e", "d", "c"], [])


def test_runs_that_turn_out_slow_cost_the_dearest():
    assert performed(COSTS, lambda cost: 2 * cost, 320) == (["a", "b", "d", "c"], ["e"])
    assert performed(COSTS, lambda cost: 2 * cost, 150) == (["a", "b", "c"], ["e", "d"])


def test_what_was_finished_before_costs_nothing():
    assert performed(COSTS, lambda cost: cost, 31, known=("c", "d", "e")) == (["a", "b"], [])
    assert performed(COSTS, lambda cost: cost, 0.0, known=tuple(COSTS)) == ([], [])


def test_memory_is_of_one_tunnel(tmp_path):
    first = Memory(tmp_path / "a", {"budget": "1h"}, time.monotonic() - 5)
    first.decide(base=7)
    again = Memory(tmp_path / "a", {"budget": "1h"}, time.monotonic())
    assert again.decided == {"base": 7}
    assert 5 <= again.spent < 60
    assert Memory(tmp_path / "a", {"budget": "2h"}, time.monotonic()).decided == {}
    same = '"same": {"budget": "1h"}'
    for damage in ("{", "[]", f"{{{same}}}", f'{{{same}, "seconds": null, "decided": {{}}}}'):
        again.path.write_text(damage)
        assert Memory(tmp_path / "a", {"budget": "1h"}, time.monotonic()).decided == {}


SETS = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]


def typed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command line in a folder, with a cache of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "THALWEG_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "thalweg", *arguments, *SETS]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_as_a_user_types_it(corpus, tmp_path):
    """Then the plan says which law it rests on."""
    said = ["--budget", "8e10 flops", "--sizes", ",".join(SIZES), "--least-steps", "5", "--jobs", "1"]
    output = typed(tmp_path, "wind-tunnel", str(corpus), *said).stdout
    for part in ("bits per byte", "Law      L = ", "Rate     ", "wind-tunnel/laws.json"):
        assert part in output
    assert (tmp_path / "wind-tunnel" / "laws.svg").stat().st_size > 1000
    plan = typed(tmp_path, "plan", str(corpus), "--budget", "50 steps", "--model", "0.2M").stderr
    assert "wind tunnel of 80000000000 flops" in " ".join(plan.split())
    other = typed(tmp_path, "plan", str(corpus), "--budget", "9 steps", "--model", "0.2M", "--laws", "built-in").stderr
    assert "Law, built-in: 1.294" in other
    assert "Rate: the rule on the card of muon" in other


@pytest.mark.slow
def test_a_time_budget_is_met(corpus, tmp_path):
    typed(tmp_path, "plan", str(corpus), "--budget", "9 steps")  # the profile and the tokens are there
    began = time.monotonic()
    typed(tmp_path, "wind-tunnel", str(corpus), "--budget", "90s", "--least-steps", "4", "--jobs", "1")
    assert 45 < time.monotonic() - began < 99
