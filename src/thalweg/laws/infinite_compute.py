"""What is the lowest loss that fixed data allows? Recipes compared where compute costs nothing.

With D tokens and no more, larger models and more passes overfit unless weight decay is tuned along (up to 30 times the
usual); then the loss falls steadily with size, and with the number of ensemble members, and each fall has an end:

    L(N) = A / N^alpha + E       one model of N parameters, everything else tuned at each N
    L(K) = A / K^B + C           K models from other seeds, logits averaged; B is about 1
    lim N lim K L                C of each N, and the N-law through these: the end of both
    L(D) = A / D^alpha + E       any of these ends over D, for each recipe

All three are `asymptote.AsymptoteLaw`. A recipe's data efficiency is the data that the *standard* recipe's law would
need for its loss, over the data that the standard recipe needs for its own.

An ensemble averages logits, not probabilities: p(x) ~ exp(mean_k log p_k(x)). Its loss is the members' mean loss plus
log Z with Z <= 1, so it is never worse than the mean member.

Source: Pre-training under infinite compute (Kim et al. 2025, arXiv:2509.14786) and its released fits. They fit raw
losses by least squares; here it is the house's Huber on log loss, which gives the same constants on losses that obey
the law. At the end of a grid of settings their certificate takes a setting for its own neighbour; here it is open.

Units: N and D in billions where the paper's numbers are used, nats a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from thalweg.errors import UserError
from thalweg.laws import asymptote, robust
from thalweg.laws.asymptote import AsymptoteLaw

# 200M tokens of DCLM, N in billions of parameters, weight decay tuned (0.8 to 3.2).
REGULARISED = AsymptoteLaw(A=0.05, alpha=1.02, E=3.43)

# The settings that the paper tuned over, each value beside its neighbours.
GRID: Mapping[str, tuple[float, ...]] = {
    "lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "epochs": (1, 2, 4, 8, 16, 32, 64),
    "weight_decay": (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4),
}

Setting = tuple[float, ...]


@dataclass(frozen=True)
class JointLaw:
    """Both limits at once: infinite members of infinite size.

    Args:
        members: the K-law of each size.
        sizes: the N-law through their ends.
        ends: the joint limit under every refit of the K-laws [R].
    """

    members: Mapping[float, AsymptoteLaw]
    sizes: AsymptoteLaw
    ends: np.ndarray = field(repr=False, compare=False)

    @property
    def E(self) -> float:
        """Loss at infinitely many members of infinite size."""
        return self.sizes.E

    def asymptote_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Where E should be: the K-laws' doubts carried through, and the N-law's own with them."""
        return robust.between(self.ends, level)


@dataclass(frozen=True)
class Certificate:
    """Whether the best setting tried is better than all its neighbours.

    Args:
        best: the setting of least loss, values in the order of the grid.
        loss: its loss.
        missing: neighbours that have not been run: what to run next.
        open: axes on which the best stands at the end of the grid: widen them.
    """

    best: Setting
    loss: float
    missing: tuple[Setting, ...]
    open: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """All neighbours exist and were run; none is better, or it would be the best."""
        return not self.missing and not self.open


def ensemble(log_probabilities: np.ndarray) -> np.ndarray:
    """Log probabilities of an ensemble that averages logits.

    Args:
        log_probabilities: [K, ..., V] of the members; logits will do, since a constant a row falls out.

    Returns:
        [..., V], normalised.
    """
    mean = np.asarray(log_probabilities, float)
    mean = (mean - _log_sum(mean)).mean(axis=0)
    return mean - _log_sum(mean)


def fit_joint(
    points: Sequence[tuple[float, float, float]] | np.ndarray,
    delta: float = 1e-3,
    spread: float | None = None,
    refits: int = 200,
    seed: int = 0,
) -> JointLaw:
    """Fits the K-law at every size and the N-law through their ends.

    The members must be tuned for the K-law's end, not for K = 1: see member_settings().

    Args:
        points: rows (parameters, members, loss).
        delta: where the Huber loss turns from square to linear, in log loss.
        spread: standard deviation of log loss over seeds where it is known.
        refits: simulated refits of every law.
        seed: of the simulation.

    Raises:
        UserError: fewer than four sizes, or a law that its points leave open.
    """
    table = np.asarray(points, dtype=float)
    if table.ndim != 2 or table.shape[1] != 3:
        raise UserError("Points must be rows of (parameters, members, loss).")
    # A seed of its own for each law: errors of different sizes have nothing to do with each other.
    members = {
        float(n): asymptote.fit(table[table[:, 0] == n, 1:], delta, spread, refits, seed + 1 + place)
        for place, n in enumerate(np.unique(table[:, 0]))
    }
    ends = np.array([(n, law.E) for n, law in members.items()])
    doubts = np.stack([law.fit.refits[:, 2] for law in members.values() if law.fit], axis=1)
    # The ends are as uncertain as their laws say; four of them cannot tell it by their residuals.
    known = float(np.median((np.quantile(doubts, 0.84, axis=0) - np.quantile(doubts, 0.16, axis=0)) / 2))
    sizes = asymptote.fit(ends, delta, known, refits, seed)
    if sizes.fit is None:
        raise UserError("The law through the ends was not fitted.")
    again = asymptote.refit(sizes.fit.theta, np.log(ends[:, 0] / sizes.center), doubts, delta)
    return JointLaw(members, sizes, np.exp(again[:, 2]))


def data_efficiency(loss: float, standard: AsymptoteLaw, standard_loss: float) -> float:
    """Times less data than the standard recipe needs for the same loss.

    Args:
        loss: of the recipe to judge.
        standard: the standard recipe's law over tokens.
        standard_loss: the standard recipe's at the same tokens; at the law's own prediction the result for it is 1.

    Raises:
        UserError: a loss that the standard recipe reaches with no amount of data.
    """
    return standard.inverse(loss) / standard.inverse(standard_loss)


def certificate(losses: Mapping[Setting, float], grid: Mapping[str, Sequence[float]] = GRID) -> Certificate:
    """Whether tuning can stop: the best setting and its neighbours one step away along each axis.

    Args:
        losses: loss of every setting run, values in the order of the grid's axes; nan for one that diverged.
        grid: values of each axis in order.

    Raises:
        UserError: nothing was run, or a value is not on the grid.
    """
    finite = {setting: loss for setting, loss in losses.items() if np.isfinite(loss)}
    if not finite:
        raise UserError("No setting has a finite loss.", fix="Run one, at a lower learning rate.")
    axes = list(grid)
    for setting in losses:
        if len(setting) != len(axes) or any(v not in grid[axis] for axis, v in zip(axes, setting, strict=True)):
            raise UserError(f"{setting} is not on the grid of {', '.join(axes)}.")
    best = min(finite, key=lambda setting: finite[setting])
    missing: list[Setting] = []
    edges: list[str] = []
    for place, axis in enumerate(axes):
        values = list(grid[axis])
        for index in (values.index(best[place]) - 1, values.index(best[place]) + 1):
            if not 0 <= index < len(values):
                edges.append(axis)
                continue
            neighbour = (*best[:place], values[index], *best[place + 1 :])
            if neighbour not in losses:
                missing.append(neighbour)
    return Certificate(best, finite[best], tuple(missing), tuple(edges))


def member_settings(epochs: float, weight_decay: float) -> tuple[float, float]:
    """(epochs, weight decay) for members of a large ensemble, from the best of a single model: twice and half.

    A heuristic of the paper: a member may overfit more than a model that stands alone, since averaging takes it back.
    """
    return 2 * epochs, weight_decay / 2


def distillation_steps(steps_an_epoch: float, epochs: float, teacher_share: float) -> float:
    """Steps of a student so that its passes over real data stay as many: steps * epochs / (1 - w).

    Args:
        steps_an_epoch: for one pass over the real data at this batch.
        epochs: passes over the real data.
        teacher_share: w, of synthetic tokens in the mixture, below 1: without real data a student collapses.

    Raises:
        UserError: a share outside [0, 1).
    """
    if not 0 <= teacher_share < 1:
        raise UserError(f"The share of synthetic tokens must be at least 0 and below 1, not {teacher_share}.")
    return steps_an_epoch * epochs / (1 - teacher_share)


def gain_kept(student: float, single: float, teacher: float) -> float:
    """Share of the ensemble's gain over a single model that a distilled student of that size keeps."""
    return (single - student) / (single - teacher)


def _log_sum(logs: np.ndarray) -> np.ndarray:
    top = logs.max(axis=-1, keepdims=True)
    return top + np.log(np.exp(logs - top).sum(axis=-1, keepdims=True))
