"""AutoLRS in a loop of its own, where what it should find is known, and in the trainer, where it leaves no trace."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.schedules import AutoLRS
from thalweg.methods.schedules.autolrs import GO_ON, RESTORE, SNAPSHOT, plan_stage
from thalweg.methods.schedules.base import StepClock
from thalweg.runs import Run
from thalweg.sessions import train as session


class Bowl:
    """Gradient descent on 0.5 h (theta - 1)^2, perhaps with momentum, under a schedule."""

    def __init__(self, schedule, steps, h=1.0, peak=0.1, momentum=0.0, breaks_above=math.inf):
        self.schedule, self.steps, self.h, self.peak, self.breaks_above = schedule, steps, h, peak, breaks_above
        self.theta = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
        self.optimizer = torch.optim.SGD([self.theta], lr=peak, momentum=momentum)
        self.done, self.kept = 0, None
        self.rates, self.orders = [], []

    def state(self):
        return self.theta.detach().clone(), copy.deepcopy(self.optimizer.state_dict())

    def run(self, count):
        for _ in range(count):
            progress = (self.done + 1) / self.steps
            rate = self.peak * self.schedule.factor(StepClock(self.done, progress))
            self.optimizer.param_groups[0]["lr"] = rate
            loss = 0.5 * self.h * (self.theta - 1.0).square().sum()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.done += 1
            value = loss.item() if rate <= self.breaks_above else math.nan
            self.follow(self.schedule.observe({"loss": value, "step": self.done, "progress": progress}))
            self.rates.append(rate)
        return self

    def follow(self, order):
        self.orders.append(order)
        if order == SNAPSHOT:
            self.kept = self.state()
        elif order == RESTORE:
            with torch.no_grad():
                self.theta.copy_(self.kept[0])
            self.optimizer.load_state_dict(copy.deepcopy(self.kept[1]))


def options(**changes):
    return {"warmup": 0.0, "stage": 40.0, "doublings": 0, "low": 0.1, "high": 10.0, **changes}


def test_finds_the_best_rate_of_a_quadratic():
    """The loss of gradient descent is exponential, exactly, with b = 2 log |1 - rate h|: best is rate = 1 / h."""
    schedule = AutoLRS(**options(stage=5.0, trial=1.0))
    bowl = Bowl(schedule, 57, h=3.0, peak=0.2).run(57)
    tried = sorted(set(bowl.rates[1:51]))
    assert len(tried) == 10
    found = bowl.rates[51]
    assert set(bowl.rates[51:]) == {found}
    assert found == min(tried, key=lambda rate: abs(1.0 - rate * 3.0))
    spacing = max(later / earlier for earlier, later in pairwise(tried))
    assert 1.0 / spacing < found * 3.0 < spacing < 2.0
    assert abs(bowl.theta.item() - 1.0) < 1e-6


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_after_the_search_only_the_chosen_rate_has_been_trained(momentum):
    schedule = AutoLRS(**options())
    bowl = Bowl(schedule, 81, h=0.5, momentum=momentum).run(81)
    assert bowl.orders[0] == SNAPSHOT
    assert [index for index, order in enumerate(bowl.orders) if order == RESTORE] == list(range(4, 41, 4))
    assert len(set(bowl.rates[41:])) == 1
    plain = Bowl(AutoLRS(**options()), 81, h=0.5, momentum=momentum).run(1)
    plain.schedule._now.rate, plain.schedule._now.left = bowl.rates[41] / 0.1, 1 << 40
    plain.schedule._now.searching = False
    plain.run(40)
    assert torch.equal(bowl.theta, plain.theta)


def test_a_diverging_trial_is_left_at_once_and_never_chosen():
    bowl = Bowl(AutoLRS(**options()), 200, h=8.0, breaks_above=0.05).run(56)
    last = max(index for index, order in enumerate(bowl.orders) if order == RESTORE)
    searched, trained = bowl.rates[1 : last + 1], bowl.rates[last + 1 :]
    broken = [rate for rate in searched if rate > 0.05]
    assert len(broken) == len(set(broken)) >= 5  # each of them one step long
    assert len(trained) > 30
    assert max(trained) <= 0.05


def test_if_every_trial_diverges_the_lowest_rate_is_trained():
    bowl = Bowl(AutoLRS(**options()), 200, breaks_above=0.0).run(15)
    assert bowl.orders[1:11] == [RESTORE] * 10
    assert bowl.rates[-1] == pytest.approx(0.1 * 0.1)


def test_one_rate_costs_twice_and_changes_nothing():
    schedule = AutoLRS(**options(low=1.0, high=1.0))
    bowl = Bowl(schedule, 161, h=0.5).run(161)
    assert set(bowl.rates) == {0.1}
    theta = torch.tensor([5.0], dtype=torch.float64)
    for _ in range(1 + 40 + 40):
        theta = theta - 0.1 * 0.5 * (theta - 1.0)
    assert bowl.theta.item() == pytest.approx(theta.item(), rel=1e-12)


def test_the_search_is_charged_and_the_run_ends_in_training():
    """Every observed step counts, and after the last restore all that remains is trained."""
    for steps in (30, 81, 100, 161, 170, 333):
        bowl = Bowl(AutoLRS(**options()), steps, h=0.5).run(steps)
        restores = [index for index, order in enumerate(bowl.orders) if order == RESTORE]
        assert len(restores) % 10 == 0
        assert len(bowl.rates) == steps
        if steps < 80:
            assert restores == []
        else:
            assert steps - 1 - restores[-1] >= 40


def test_a_budget_that_ends_in_a_search_goes_back():
    """A time budget may end sooner than the pace said; the weights of a trial must not be what remains."""
    bowl = Bowl(AutoLRS(**options()), 200, h=0.5).run(10)
    before = bowl.kept[0]
    order = bowl.schedule.observe({"loss": 1.0, "step": 11, "progress": 1.0})
    assert order == RESTORE
    bowl.follow(order)
    assert torch.equal(bowl.theta, before)
    assert bowl.schedule.observe({"loss": 1.0, "step": 12, "progress": 1.0}) == GO_ON


def test_stages_as_shares_are_those_in_steps():
    shares = Bowl(AutoLRS(**options(stage=0.1)), 400, h=0.5).run(400)
    steps = Bowl(AutoLRS(**options(stage=40.0)), 400, h=0.5).run(400)
    assert shares.rates == steps.rates
    assert shares.orders == steps.orders


@pytest.mark.parametrize("seed", range(6))
def test_under_a_clock_of_seconds_the_run_ends_in_training(seed):
    """Steps take unequal time, the first ones long: the plan is guessed anew at each stage."""
    generator = torch.Generator().manual_seed(seed)
    durations = (0.5 + torch.rand(400, generator=generator)) * (1.0 + 5.0 * (torch.arange(400) < 5))
    progress = (durations.cumsum(0) / durations.sum()).tolist()
    schedule = AutoLRS(**options(stage=0.1, warmup=0.05))
    searching = False
    for step, share in enumerate(progress, 1):
        order = schedule.observe({"loss": 2.0 - 0.001 * step, "step": step, "progress": min(share, 1.0)})
        searching = schedule.state_dict()["searching"]
        assert order in (GO_ON, SNAPSHOT, RESTORE)
        if share < 0.05:
            assert not searching
    assert not searching
    assert schedule.state_dict()["stages"] >= 3


def test_stages_double():
    schedule = AutoLRS(**options(stage=400.0, doublings=2, trials=2))
    bowl = Bowl(schedule, 2000, h=0.01).run(2000)
    opened = [index for index, order in enumerate(bowl.orders) if order == SNAPSHOT]
    assert [later - earlier for earlier, later in pairwise(opened)] == [120, 240, 480, 480]


@pytest.mark.parametrize(
    ("wanted", "remaining", "expected"),
    [
        (100.0, 1000.0, (10, 100)),
        (100.0, 400.0, (10, 100)),
        (100.0, 399.0, (19, 209)),  # no second stage would fit: this one takes all
        (100.0, 80.0, (4, 40)),
        (100.0, 79.0, None),
        (10.0, 500.0, (4, 40)),  # trials are at least four steps
    ],
)
def test_plan_of_a_stage(wanted, remaining, expected):
    assert plan_stage(wanted, remaining, AutoLRS()) == expected


def test_wants_validation_evenly_in_full_stages_only():
    schedule = AutoLRS(**options(stage=400.0, doublings=0, trials=2))
    wanted = []
    for step in range(42):
        wanted.append(schedule.wants_validation)
        metrics = {"loss": 2.0 - 0.01 * step, "step": step + 1, "progress": (step + 1) / 2000}
        if wanted[-1]:
            metrics["validation_loss"] = 1.5
        schedule.observe(metrics)
    assert [step for step in range(42) if wanted[step]] == list(range(2, 41, 2))
    early = AutoLRS(**options(stage=400.0, doublings=1))
    early.observe({"loss": 2.0, "step": 1, "progress": 0.0005})
    assert not any(early.wants_validation or early.observe({"loss": 2.0, "step": s, "progress": s / 2000}) == SNAPSHOT
                   for s in range(2, 100))  # fmt: skip


def test_validation_decides_where_there_is_one():
    """Training loss says the higher the better, validation that the lowest rate is best."""
    for validated in (True, False):
        schedule = AutoLRS(**options(stage=400.0, trials=3, trial=0.1))
        for step in range(125):
            rate = schedule.factor(StepClock(step, (step + 1) / 2000))
            metrics = {"loss": 2.0 - 0.1 * rate, "step": step + 1, "progress": (step + 1) / 2000}
            if schedule.wants_validation and validated:
                metrics["validation_loss"] = 1.0 + 0.001 * rate
            schedule.observe(metrics)
        chosen = schedule.factor(StepClock(125, 0.07))
        assert chosen == 0.1 if validated else chosen > 5.0


def test_state_round_trip_mid_search():
    whole = Bowl(AutoLRS(**options()), 300, h=0.5, momentum=0.9).run(300)
    for at in (1, 7, 23, 45):
        first = Bowl(AutoLRS(**options()), 300, h=0.5, momentum=0.9).run(at)
        second = Bowl(AutoLRS(**options()), 300, h=0.5, momentum=0.9)
        second.schedule.load_state_dict(copy.deepcopy(first.schedule.state_dict()))
        second.theta.data.copy_(first.theta.data)
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.done, second.kept = first.done, first.kept
        second.run(300 - at)
        assert second.rates == whole.rates[at:]
        assert torch.equal(second.theta, whole.theta)


@pytest.mark.parametrize(
    "wrong",
    [{"low": 0.0}, {"low": 2.0}, {"high": 0.5}, {"stage": 0.0}, {"trials": 0}, {"trial": 1.5}, {"kappa": math.nan}],
)
def test_mistakes_are_named(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        AutoLRS(**wrong)


# -- in the trainer -----------------------------------------------------------------------------------------------

ARM = "adamw+autolrs:stage=8,trials=2,trial=0.5,doublings=0,warmup=0.1+gradient_noise"


def story(folder):
    steps = list(Run.open(folder).metrics("step"))
    return [(line["step"], line["loss"], line["lr"], line["trial"]) for line in steps]


def test_a_run_stopped_amid_a_search_goes_on_bit_for_bit(small, whole_and_resumed):
    whole, resumed = whole_and_resumed(small(ARM, budget="30 steps"), 11)
    lines = story(whole.folder)
    assert [trial for *_, trial in lines] == [0] * 3 + [1] * 6 + [2] * 6 + [0] * 15
    assert story(resumed.folder) == lines


def test_a_budget_of_tokens_is_the_same_search(small, tmp_path):
    steps = session.train(small(ARM, budget="30 steps"), tmp_path / "steps", quiet=True, show=False)
    other = session.train(small(ARM, budget="7680 tokens"), tmp_path / "other", quiet=True, show=False)
    assert story(other.folder) == story(steps.folder)


def test_sharded_weights_are_refused(small, tmp_path):
    with pytest.raises(RecipeError, match="autolrs keeps copies"):
        session.train(small(ARM, budget="30 steps", training__shard=True), tmp_path / "run", quiet=True, show=False)
