"""Does DAL remove the instability of gradient descent without a rate to tune?

The rate is that of plain gradient descent, which no arm of the catalogue is, so it is no race. A small network
classifies points of three spirals by full-batch gradient descent: with DAL (p = 1 and 0.5, cap 5), and with constant
rates and cosines of six sizes. All get the same number of gradients: DAL, which needs two a step, half the steps. A
run diverges that ends above where it began; a rate that nobody tuned is the median of the six. The claim holds if DAL
never diverges where some rates do, and ends below what is got without tuning.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg import catalog
from thalweg.arena.claims.finding import Finding
from thalweg.budget import Budget
from thalweg.numerics.curvature import gradient, hessian_vector_product, norm
from thalweg.training.clock import Clock

GRADIENTS, SEEDS, CAP = 1000, 5, 5.0
FIRST_SEED = 100  # the criterion was fixed after seeds 0 to 2 had been seen, so it is judged on others
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
POWERS = (1.0, 0.5)


def drift_adjusted(seed: int = 0, gradients: int = GRADIENTS, seeds: int = SEEDS) -> Finding:
    """Last losses and largest ones over the first, a seed each, for DAL and for all rates."""
    dal, constant, cosine = (catalog.resolve(name) for name in ("dal", "constant", "cosine"))
    others = range(FIRST_SEED + seeds * seed, FIRST_SEED + seeds * (seed + 1))
    runs = {
        f"dal p={p:g}": [_adjusted(dal(p=p, peak_lr=CAP), other, gradients // 2) for other in others] for p in POWERS
    }
    for name, schedule in (("constant", constant), ("cosine", cosine)):
        runs |= {
            f"{name} {rate:g}": [_descend(schedule(warmup=0.0), rate, other, gradients) for other in others]
            for rate in RATES
        }
    return _judged(runs)


def spirals() -> tuple[Tensor, Tensor]:
    """300 points of three arms, [300, 2], and which arm, [300]."""
    turn = torch.linspace(0.1, 1.0, 100)
    arms = [turn * 4.0 + 2.0 * math.pi * arm / 3 for arm in range(3)]
    points = torch.cat([torch.stack([turn * angle.sin(), turn * angle.cos()], 1) for angle in arms])
    return points, torch.arange(3).repeat_interleave(100)


def _problem(seed: int) -> tuple[list[nn.Parameter], Any]:
    """Parameters of a network with two hidden layers, and its loss on all points."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    points, arms = spirals()
    return list(model.parameters()), lambda: functional.cross_entropy(model(points), arms)


def _descend(schedule: Any, rate: float, seed: int, steps: int) -> dict[str, float]:
    """Gradient descent under a schedule; the last loss, and the largest over the first one."""
    parameters, loss = _problem(seed)
    clock, seen = Clock(Budget.parse(f"{steps} steps")), []
    for _ in range(steps):
        clock.begin_step(1, 1.0)
        seen.append(_step(parameters, loss, gradient(loss, parameters), rate * schedule.factor(clock)))
        clock.advance(1, 1.0)
    return _summary(seen, loss)


def _adjusted(schedule: Any, seed: int, steps: int) -> dict[str, float]:
    """Gradient descent with DAL: the curvature is measured before each step."""
    parameters, loss = _problem(seed)
    clock, seen, rates = Clock(Budget.parse(f"{steps} steps")), [], []
    for _ in range(steps):
        clock.begin_step(1, 1.0)
        slopes = gradient(loss, parameters)
        curvature = float(norm(hessian_vector_product(loss, parameters, slopes)) / norm(slopes))
        schedule.observe({"curvature": curvature})
        rates.append(schedule.peak_lr * schedule.factor(clock))
        seen.append(_step(parameters, loss, slopes, rates[-1]))
        clock.advance(1, 1.0)
    return {**_summary(seen, loss), "rate": statistics.median(rates)}


@torch.no_grad()
def _step(parameters: list[nn.Parameter], loss: Any, slopes: list[Tensor], rate: float) -> float:
    """The loss before the step."""
    before = float(loss())
    for parameter, slope in zip(parameters, slopes, strict=True):
        parameter.sub_(rate * slope)
    return before


@torch.no_grad()
def _summary(seen: list[float], loss: Any) -> dict[str, float]:
    last = float(loss())
    worst = max(value if math.isfinite(value) else math.inf for value in [*seen, last])
    return {"last": last if math.isfinite(last) else math.inf, "worst": worst / seen[0]}


def _judged(runs: dict[str, list[dict[str, float]]]) -> Finding:
    last = {name: [run["last"] for run in seeds] for name, seeds in runs.items()}
    worst = {name: max(run["worst"] for run in seeds) for name, seeds in runs.items()}
    mean = {name: sum(values) / len(values) for name, values in last.items()}
    rates = [name for name in runs if not name.startswith("dal")]
    # Three classes, and outputs near zero at first: every run begins near log 3.
    diverged = [name for name in runs if max(last[name]) >= math.log(3.0) - 1e-3]
    untuned = statistics.median(mean[name] for name in rates if name.startswith("constant"))
    tuned = min(rates, key=mean.__getitem__)
    ours = "dal p=1"
    return Finding(
        numbers={
            **{f"last losses, {name}": [_short(value) for value in values] for name, values in last.items()},
            **{f"largest over first loss, {name}": _short(value) for name, value in worst.items()},
            "median rate, dal p=1": statistics.median(run["rate"] for run in runs[ours]),
            "diverged": ", ".join(diverged),
        },
        holds=ours not in diverged and any(name in diverged for name in rates) and mean[ours] < untuned,
        sentence=(
            f"At equal gradients DAL ends at {mean[ours]:.4f} (p = 0.5: {mean['dal p=0.5']:.4f}), the best of "
            f"{len(rates)} tuned rates and cosines ({tuned}) at {mean[tuned]:.4f}, the median constant rate at "
            f"{untuned:.4f}; {sum(name in diverged for name in rates)} of those diverged, DAL "
            f"{'too' if ours in diverged else 'did not'}; its loss rose to {worst[ours]:.1f} times the "
            "first one on the way."
        ),
    )


def _short(value: float) -> float:
    """Four digits; JSON has no word for infinity, so a billion stands for all above it."""
    return float(f"{min(value, 1e9):.4g}")
