"""Loss at any step of any learning-rate schedule, from one or two curves: L = L0 + A * S1^-alpha - C * S2.

S1 is how far the rate has carried the run, S2 how much it has been annealed. Each fall of the rate pays off with a
delay, which a momentum describes. With rates eta_i of steps i = 1..s:

    S1(s) = sum_{i<=s} eta_i
    m_i   = momentum * m_{i-1} + (eta_{i-1} - eta_i),  m_1 = 0
    S2(s) = sum_{i<=s} m_i
    L(s)  = L0 + A * S1(s)^-alpha - C * S2(s)

Constants hold for one model, batch and corpus, and for the range of rates that was seen: the law thinks that a higher
peak is always better. A rate that rises again raises the loss by what S2 loses.

*Warm-up.* A rate that rises from nothing would count as annealing undone. Two conventions keep it out: "flat" takes the
whole warm-up at its peak (the paper's), "area" takes its rates as they were in S1. In both nothing is annealed before
its end. Which fits better depends on the run; fit() tries both when asked.

Units: rates of one optimizer (their unit goes into A and C), one step an optimizer step at one batch size (momentum is
a step's), losses in nats a token or any other unit. A loss belongs to the number of steps taken *before* it was
measured: a training loss logged with the s-th step was measured after s - 1.

Source: Scaling Law with Learning Rate Annealing (Tissue, Wang, Wang 2024, arXiv:2408.11029). The objective (a *sum* of
Huber terms of log losses, delta 1e-3), the starts and the tolerances are those of the released code, in a unit of the
rate that makes the grid fit ours; starts from a linear solution and a last refinement are added. momentum is 0.999
there, chosen for tens of thousands of steps; for shorter runs it is chosen on the curves. The intervals, the refusals
and the second convention are ours.

*Intervals.* Errors of a run go along together, so its residuals are resampled by blocks of steps (see
annealing_evidence.resampled), put on the fitted curve, and everything is fitted again. Percentiles over these refits
are what the curves leave open. What no curve can show is where the law itself is wrong for other schedules: bands add
an error of the law for it, scaled by what was measured elsewhere. Another seed is not in them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thalweg.errors import UserError
from thalweg.laws import annealing_evidence as evidence
from thalweg.laws import annealing_features as view
from thalweg.laws import annealing_fit
from thalweg.laws.annealing_features import CONVENTIONS, Curve, features, warmup_steps

__all__ = ["CONVENTIONS", "MOMENTA", "AnnealingLaw", "Curve", "features", "fit", "warmup_steps"]

MOMENTA = (0.98, 0.99, 0.995, 0.999)
PARAMETERS = ("L0", "A", "alpha", "C")
# By how much the law itself misses the final loss of schedules and lengths that it was not fitted to, as a standard
# deviation of the log: fitted to one schedule, or to two or more. What it leaves of the curves that it was fitted to
# tells how well it holds for such runs: RESIDUAL_ERROR times the residuals' size, and at least LAW_ERROR.
# With two schedules 1.9 to 2.6 times on public curves of 25M, 100M and 400M parameters over 24,000 steps and 3.4 in our
# own runs of 400 to 600 steps (benchmarks/forecast.py); with one 5 times, and 0.009 to 0.012 where residuals are tiny.
RESIDUAL_ERROR = (5.0, 3.0)
LAW_ERROR = (0.01, 0.003)

Candidate = tuple[float, str]
_DRAWS = 10


@dataclass(frozen=True)
class AnnealingLaw:
    """The law with its constants, and the refits that carry its uncertainty.

    Args:
        L0: loss that no number of steps goes below at a constant rate.
        A: scale of the part that falls with S1.
        alpha: its exponent.
        C: worth of S2, in loss a unit of rate.
        momentum: of annealing, a step.
        convention: of the warm-up, "flat" or "area".
        objective: summed Huber loss of the fit.
        refits: rows (L0, A, alpha, C) [R, 4]; empty where nothing was resampled.
        candidates: (momentum, convention) of each refit [R].
        residuals: log(measured / fitted) [P].
        reach: largest S1 and S2 among the points fitted.
        law_error: standard deviation of the log by which the law may miss schedules unlike those fitted.
    """

    L0: float
    A: float
    alpha: float
    C: float
    momentum: float = 0.999
    convention: str = "flat"
    objective: float = math.nan
    refits: np.ndarray = field(default_factory=lambda: np.empty((0, 4)), repr=False, compare=False)
    candidates: tuple[tuple[float, str], ...] = field(default=(), repr=False, compare=False)
    residuals: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    reach: tuple[float, float] = field(default=(math.inf, math.inf), compare=False)
    law_error: float = field(default=LAW_ERROR[1], compare=False)

    @property
    def theta(self) -> np.ndarray:
        """The constants in the order of PARAMETERS."""
        return np.array([self.L0, self.A, self.alpha, self.C])

    def features(self, rates: Any, warmup: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """S1 and S2 after each step of a schedule [T], as this law counts them."""
        return features(rates, self.momentum, warmup, self.convention)

    def predict(self, rates: Any, steps: Any = None, warmup: int = 0) -> np.ndarray:
        """Loss after the given numbers of steps [P] (1..T; all of them when left out) of a schedule's rates [T]."""
        walk, annealed = view.at(self.features(rates, warmup), steps)
        return annealing_fit.predict(self.theta[None], walk, annealed)[0]

    def samples(self, rates: Any, steps: Any = None, warmup: int = 0) -> np.ndarray:
        """What each refit predicts [R, P], without noise: differences between schedules are taken refit by refit.

        Raises:
            UserError: the law was fitted without bootstrap.
        """
        self._needs_refits()
        asked = len(np.asarray(rates)) if steps is None else len(np.atleast_1d(np.asarray(steps)))
        found = np.empty((len(self.refits), asked))
        for momentum, convention in sorted(set(self.candidates)):
            mine = [candidate == (momentum, convention) for candidate in self.candidates]
            walk, annealed = view.at(features(rates, momentum, warmup, convention), steps)
            found[mine] = annealing_fit.predict(self.refits[mine], walk, annealed)
        return found

    def band(
        self,
        rates: Any,
        steps: Any = None,
        warmup: int = 0,
        level: float = 0.95,
        law_error: float | None = None,
        noise: float = 1.0,
        seed: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where losses measured under a schedule should fall, low and high [P], each step for itself.

        Args:
            rates, steps, warmup: as for predict().
            level: share of losses inside.
            law_error: standard deviation of the log by which the law itself may be wrong, which curves cannot show;
                the law's own `law_error` when left out.
            noise: share of the residuals' size that is added: 1 for a loss as measured, 0 for the curve behind it.
            seed: of the residuals and law errors that are added to what the refits predict.
        """
        logs = np.log(self.samples(rates, steps, warmup))
        error = self.law_error if law_error is None else law_error
        generator = np.random.default_rng(seed)
        shape = (_DRAWS, *logs.shape)
        drawn = noise * generator.choice(self._errors(), size=shape)
        logs = (logs + drawn + error * generator.normal(size=shape)).reshape(-1, logs.shape[1])
        low, high = np.exp(np.quantile(logs, [(1 - level) / 2, (1 + level) / 2], axis=0))
        return low, high

    def intervals(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Percentiles over refits of each constant, by name."""
        self._needs_refits()
        ends = np.quantile(self.refits, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return {name: (float(ends[0, i]), float(ends[1, i])) for i, name in enumerate(PARAMETERS)}

    def to_dict(self) -> dict[str, Any]:
        """Constants and choices, as JSON can hold them."""
        return {name: float(getattr(self, name)) for name in PARAMETERS} | {
            "momentum": self.momentum,
            "convention": self.convention,
            "objective": self.objective,
        }

    def _errors(self) -> np.ndarray:
        """Residuals as large as the errors behind them."""
        points = len(self.residuals)
        return self.residuals * math.sqrt(points / max(points - evidence.CONSTANTS, 1))

    def _needs_refits(self) -> None:
        if not len(self.refits):
            raise UserError("This law has no refits, so no interval.", fix="Fit it with bootstrap > 0.")


def fit(
    curves: Sequence[Curve],
    momenta: Iterable[float] = (0.999,),
    conventions: Iterable[str] = ("flat",),
    delta: float = 1e-3,
    bootstrap: int = 0,
    block: int | None = None,
    seed: int = 0,
) -> AnnealingLaw:
    """Fits the law to the losses of one run or several, those after the warm-up.

    Args:
        curves: of the same model, batch and corpus; together they must show a rate that falls.
        momenta: the one of least objective is kept; MOMENTA for runs below ten thousand steps.
        conventions: of the warm-up, chosen likewise; CONVENTIONS tries both.
        delta: where the Huber loss turns from square to linear, in log loss.
        bootstrap: refits, for intervals; 200 will do. Each chooses momentum and convention for itself.
        block: neighbouring points whose errors stay together; the cube root of their number when left out.
        seed: of the bootstrap.

    Raises:
        UserError: what is no curve, or curves that cannot identify the law, with what is missing.
    """
    curves = [view.usable(curve) for curve in curves]
    loss = np.log(np.concatenate([np.empty(0), *(curve.losses for curve in curves)]))
    fall = max(map(view.fall, curves), default=0.0)
    tried: dict[Candidate, tuple[np.ndarray, np.ndarray]] = {}
    for candidate in itertools.product(map(float, momenta), conventions):
        tried[candidate] = view.points(curves, *candidate)
        evidence.check_seen(len(loss), fall, tried[candidate][0])
    thetas = {candidate: annealing_fit.quick(*points, loss, delta) for candidate, points in tried.items()}
    best = min(tried, key=lambda name: float(annealing_fit.summed(thetas[name][None], *tried[name], loss, delta)[0]))
    walk, annealed = tried[best]
    theta = thetas[best] = annealing_fit.minimise(walk, annealed, loss, delta)
    evidence.check_identified(theta, walk, annealed, loss)
    residuals = loss - np.log(annealing_fit.predict(theta[None], walk, annealed)[0])
    known = min(view.schedules(curves), 2) - 1
    ends = np.cumsum([len(curve.steps) for curve in curves])
    errors = evidence.resampled(np.split(residuals, ends[:-1]), block, bootstrap, np.random.default_rng(seed))
    refits, candidates = _refits(thetas, tried, loss - residuals + errors, delta)
    return AnnealingLaw(
        **dict(zip(PARAMETERS, theta.tolist(), strict=True)),
        momentum=best[0],
        convention=best[1],
        objective=float(annealing_fit.summed(theta[None], walk, annealed, loss, delta)[0]),
        refits=refits,
        candidates=candidates,
        residuals=residuals,
        reach=(float(walk.max()), float(annealed.max())),
        law_error=max(LAW_ERROR[known], RESIDUAL_ERROR[known] * float(residuals.std())),
    )


def _refits(
    thetas: dict[Candidate, np.ndarray],
    tried: dict[Candidate, tuple[np.ndarray, np.ndarray]],
    simulated: np.ndarray,
    delta: float,
) -> tuple[np.ndarray, tuple[Candidate, ...]]:
    """The best of all candidates for each row of simulated log losses: thetas [R, 4] and which it was."""
    names = list(tried)
    if not len(simulated):
        return np.empty((0, 4)), ()
    found = [annealing_fit.refits(thetas[name], *tried[name], simulated, delta) for name in names]
    best = np.argmin([costs for _, costs in found], axis=0)
    chosen = np.stack([theta for theta, _ in found])[best, np.arange(len(simulated))]
    return chosen, tuple(names[index] for index in best)
