"""Schedules drawn without a run: the numbers, the figure, the files, and what cannot be drawn."""

from __future__ import annotations

import pytest

from thalweg import catalog
from thalweg.budget import Budget
from thalweg.errors import BudgetError, RecipeError, UserError
from thalweg.reports import schedule_plot
from thalweg.reports.schedule_plot import DrawnClock, curves, figure, terminal, write
from thalweg.training.planned import CLOSED_LOOP

STEPS = Budget.parse("1000 steps")


def test_every_step_of_a_short_run_is_a_point():
    [linear] = curves(["linear:warmup=0.5"], Budget.parse("8 steps"))
    assert linear.name == "linear:warmup=0.5"
    expected = [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert linear.points == [(step + 1.0, pytest.approx(factor)) for step, factor in enumerate(expected)]


def test_a_long_run_is_sampled_in_whole_steps_to_its_end():
    [drawn] = curves(["uba:phi=5"], Budget.parse("123456 steps"))
    places = [x for x, _ in drawn.points]
    assert len(places) == 1000
    assert places[-1] == 123456.0
    assert drawn.points[-1][1] == 0.0
    assert all(place == int(place) for place in places)
    assert len(set(places)) == 1000


@pytest.mark.parametrize("budget", ["50M tokens", "90s", "1e17 flops", "2 epochs", "1000 steps"])
def test_a_schedule_of_progress_is_the_same_under_every_budget(budget):
    amount = Budget.parse(budget)
    reference = [y for _, y in curves(["wsd"], STEPS)[0].points]
    [drawn] = curves(["wsd"], amount)
    assert [y for _, y in drawn.points] == pytest.approx(reference, abs=1e-12)
    assert drawn.points[-1][0] == pytest.approx(amount.amount)


def test_tokens_are_counted_where_the_budget_tells_them():
    """The law halves every factor of 4: b = -0.5, with a cap that is never reached."""
    arm = "power:a=1.0,b=-0.5,decay=0.0,warmup=0.0,batch_size=1,context=1,peak_lr=1.0"
    [drawn] = curves([arm], Budget.parse("4M tokens"))
    by_place = dict(drawn.points)
    assert by_place[4e6] / by_place[1e6] == pytest.approx(0.5, abs=1e-6)
    [counted] = curves(["power:a=1.0,b=-0.5,decay=0.0,warmup=0.0,batch_size=4,context=1000,peak_lr=1.0"], STEPS)
    assert dict(counted.points)[1000.0] == pytest.approx(4 * (1000 * 4 * 1000) ** -0.5)


@pytest.mark.parametrize("budget", ["90s", "1e17 flops", "2 epochs"])
def test_what_a_budget_does_not_tell_is_not_invented(budget):
    with pytest.raises(RecipeError, match="power looks at the clock's tokens"):
        curves(["power"], Budget.parse(budget))


def test_the_clock_knows_its_own_unit_only():
    clock = DrawnClock(Budget.parse("100s"), 0.5, 50.0, "some")
    assert (clock.progress, clock.seconds) == (0.5, 50.0)
    with pytest.raises(RecipeError, match="some looks at the clock's step"):
        clock.step  # noqa: B018


@pytest.mark.parametrize("hook", CLOSED_LOOP)
def test_a_schedule_that_decides_while_it_trains_says_so(monkeypatch, hook):
    monkeypatch.setattr(catalog.resolve("cosine"), hook, lambda self, *_: None, raising=False)
    with pytest.raises(RecipeError, match="cosine decides while it trains"):
        curves(["linear", "cosine"], STEPS)


@pytest.mark.parametrize("arm", ["muon", "muon+wsd", "adamw+z_loss_penalty", "wsd+z_loss_penalty"])
def test_only_bare_schedules(arm):
    with pytest.raises(RecipeError, match="not one schedule"):
        curves([arm], STEPS)


@pytest.mark.parametrize(("arm", "said"), [("ubba", "ubba"), ("uba:phi=0", "phi"), ("uba:fi=1", "fi"), ("", "no")])
def test_arms_that_cannot_be_read(arm, said):
    with pytest.raises(UserError, match=said):
        curves([arm], STEPS)


def test_a_schedule_named_twice_is_drawn_once():
    assert [curve.name for curve in curves(["cosine", "uba", "cosine"], STEPS)] == ["cosine", "uba"]


def test_the_figure_draws_the_numbers():
    drawn = curves(["uba:phi=5", "cosine", "wsd:decay=0.3"], STEPS)
    [axes] = figure(drawn, STEPS).axes
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == ["uba:phi=5.0", "cosine", "wsd:decay=0.3"]
    assert [list(map(tuple, line.get_xydata())) for line in lines] == [curve.points for curve in drawn]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("steps", "learning rate / peak")
    assert len({line.get_color() for line in lines}) == 3


def test_many_curves_can_be_told_apart():
    drawn = curves([f"uba:phi={phi}" for phi in range(1, 17)], Budget.parse("20 steps"))
    [axes] = figure(drawn, Budget.parse("20 steps")).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}) == 16


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.SVG", b"<?xml")])
def test_pictures_are_written_and_the_same_every_time(tmp_path, name, begins):
    drawn = curves(["uba", "cosine"], STEPS)
    path = write(drawn, STEPS, tmp_path / name)
    first = path.read_bytes()
    assert first.startswith(begins)
    assert len(first) > 5000
    if name != "a.SVG":
        assert write(drawn, STEPS, path).read_bytes() == first


@pytest.mark.parametrize(("name", "said"), [("a.gif", ".gif"), ("a", "without an ending"), ("no/a.png", "No such")])
def test_pictures_that_cannot_be_written(tmp_path, name, said):
    with pytest.raises(RecipeError, match=said):
        write(curves(["cosine"], STEPS), STEPS, tmp_path / name)


def test_the_terminal_shows_the_fall_and_the_names():
    text = terminal(curves(["constant:warmup=0.0", "linear:warmup=0.0"], STEPS), STEPS, 60)
    lines = text.splitlines()
    assert lines[0] == "learning rate / peak"
    assert lines[1].count("*") > 50
    assert lines[17].rstrip().endswith("o")
    assert lines[-2].endswith("1000 steps")
    assert lines[-1] == "* constant:warmup=0.0   o linear:warmup=0.0"
    assert max(map(len, lines)) == 60


def test_bad_budgets_are_the_users():
    with pytest.raises(BudgetError):
        schedule_plot.curves(["cosine"], Budget.parse("soon"))
