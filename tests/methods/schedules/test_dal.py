"""DAL against the numbers of its sheet on E = (4 x^2 + y^2) / 2, and its measurement within a trainer."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.schedules import DAL
from thalweg.methods.schedules.base import StepClock
from thalweg.methods.schedules.dal import drift_adjusted_rate
from thalweg.numerics.curvature import gradient, hessian_vector_product, norm

SCALES = torch.tensor([4.0, 1.0], dtype=torch.float64)


def curvature(slope):
    slope = torch.tensor(slope, dtype=torch.float64)
    return float((SCALES * slope).norm() / slope.norm())


@pytest.mark.parametrize(
    ("slope", "rates"),
    [((1.0, 0.0), (2, 1, 0.5)), ((0.0, 1.0), (2, 2, 2)), ((3.0, 4.0), (2, 1.257433, 0.790569))],
)
def test_rate_oracle(slope, rates):
    seen = [drift_adjusted_rate(curvature(slope), p) for p in (0.0, 0.5, 1.0)]
    assert seen == pytest.approx(rates, abs=1e-6)


def descend(p, steps, start=(1.0, 1.0)):
    """Losses of gradient descent with DAL's rate, through the schedule as a loop would use it."""
    dal = DAL(p=p, peak_lr=1e6)
    theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)

    def energy():
        return 0.5 * (SCALES * theta**2).sum()

    losses = []
    for step in range(steps):
        slope = gradient(energy, [theta])
        dal.observe({"curvature": float(norm(hessian_vector_product(energy, [theta], slope)) / norm(slope))})
        with torch.no_grad():
            theta -= dal.peak_lr * dal.factor(StepClock(step, 0.5)) * slope[0]
        losses.append(energy().item())
    return losses, theta.detach()


def test_on_a_quadratic_it_stays_on_the_edge():
    losses, theta = descend(1.0, 5)
    assert losses == pytest.approx([2.35468, 2.32128, 2.31308, 2.31104, 2.31053], abs=1e-5)
    assert abs(theta[1]) < 0.05


def test_along_an_eigenvector_it_turns_round_for_ever():
    losses, theta = descend(1.0, 4, start=(0.7, 0.0))
    assert losses == pytest.approx([0.5 * 4 * 0.49] * 4)
    assert theta[0] == pytest.approx(0.7)


def test_a_softer_power_diverges_on_a_quadratic():
    losses, _ = descend(0.5, 3)
    assert losses == pytest.approx([18.7, 168, 1514], rel=5e-3)


def test_rate_is_never_below_two_over_the_largest_curvature():
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        slope = torch.randn(2, generator=generator).tolist()
        assert drift_adjusted_rate(curvature(slope)) >= 2 / 4 - 1e-12


def test_scaling_the_loss_scales_the_rate_inversely():
    assert drift_adjusted_rate(10 * 3.0) == pytest.approx(drift_adjusted_rate(3.0) / 10)


def test_the_peak_is_the_cap():
    dal = DAL(peak_lr=0.5)
    assert dal.factor(StepClock(0, 0.5)) == 1.0
    for curved, factor in ((0.0, 1.0), (1.0, 1.0), (8.0, 0.5), (40.0, 0.1)):
        dal.observe({"curvature": curved})
        assert dal.factor(StepClock(0, 0.5)) == pytest.approx(factor)
    dal.observe({"curvature": math.nan})
    assert dal.factor(StepClock(0, 0.5)) == pytest.approx(0.1)


def test_warmup_holds_back_what_was_measured():
    dal = DAL(warmup=0.2, peak_lr=0.5)
    dal.observe({"curvature": 8.0})
    assert dal.factor(StepClock(0, 0.1)) == pytest.approx(0.25)


def test_state_carries_the_measurement():
    dal, other = DAL(), DAL()
    dal.observe({"curvature": 3.0})
    other.load_state_dict(dal.state_dict())
    assert other.factor(StepClock(0, 0.5)) == dal.factor(StepClock(0, 0.5)) == pytest.approx(2 / 3 / 5)


class Quadratic:
    """The part of a trainer that DAL looks at, in float32, with the gradient of a fixed batch."""

    def __init__(self, options=()):
        self.parameters = [torch.nn.Parameter(torch.tensor([0.75, 4.0])), torch.nn.Parameter(torch.ones(1))]
        self.optimizer = torch.optim.SGD(self.parameters, lr=1.0)
        self.recipe = SimpleNamespace(schedule=SimpleNamespace(options=dict(options)))
        self.plan, self.metrics, self.step_flops = {"peak_lr": 5.0}, {}, 100.0

    def backward(self, batch):
        # The second parameter takes no part: it has no gradient.
        loss = (batch * SCALES.float() * self.parameters[0] ** 2).sum() / 2
        loss.backward()
        return loss.detach()


def test_within_a_trainer_it_measures_and_leaves_no_trace():
    trainer, dal = Quadratic(), DAL()
    dal.setup(trainer)
    trainer.backward(1.0)
    dal.raw_gradients(trainer, 1.0)
    assert trainer.metrics["curvature"] == pytest.approx(math.sqrt(160) / 5, rel=1e-3)
    assert dal.factor(StepClock(0, 0.5)) == pytest.approx(0.790569 / 5, rel=1e-3)
    assert torch.equal(trainer.parameters[0], torch.tensor([0.75, 4.0]))
    assert torch.equal(trainer.parameters[0].grad, torch.tensor([3.0, 4.0]))
    assert trainer.parameters[1].grad is None
    assert trainer.step_flops == 200.0


def test_within_a_trainer_the_peak_is_the_runs():
    with pytest.raises(RecipeError, match="takes peak_lr from the run"):
        DAL(peak_lr=2.0).setup(Quadratic({"peak_lr": 2.0}))


@pytest.mark.parametrize("options", [{"p": -1.0}, {"p": math.inf}, {"peak_lr": 0.0}, {"peak_lr": math.nan}])
def test_mistakes_are_named(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        DAL(**options)
