"""How sparse should a mixture of experts be? Task loss over tokens per parameter, at fixed tokens.

A mixture of experts has two sizes: all its parameters, which store, and those a token passes through, which compute.

    N_total  = 2 V d + L (4 d^2 + E 3 d f + d E)        d width, L layers, E experts of inner width f = 2 d,
    N_active = 2 V d + L (4 d^2 + k 3 d f + d E)        k of them a token, V entries in two tables
    sparsity = 1 - k / E,   TPP = tokens / N_total,   6 N_active training FLOPs a token

Pre-training loss falls with N_total, and so does the loss of tasks that ask for knowledge. The loss of tasks that ask
for reasoning turns up again where a model has too few tokens for each of its *total* parameters (about 20 in the
paper), and falls with active compute. The paper reports this as measurements and gives no equation. So that a family
can be judged by number, fit() describes it by one of *ours*, no more than a parabola in the measured range:

    log task loss = c + a log N_active + b log TPP + q (log TPP)^2

With q > 0 there is a best TPP, exp(-b / 2q); a monotone task has none in the range, and optimum() says so. Task loss is
the cross-entropy of the answer's tokens alone: accuracy is near 0 at sizes where the loss already tells models apart.

Source: Optimal Sparsity of Mixture-of-Experts Language Models for Reasoning Tasks (Nakamura et al. 2025,
arXiv:2508.18672). Sizes leave out norms, as the formulas do. Units: parameters, tokens, nats a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from thalweg.errors import UserError
from thalweg.laws import robust

# Less than this factor between the smallest and largest active size, and its exponent is noise.
_LEAST_ACTIVE_SPAN = 1.5
_LEAST_TPP_SPAN = 4.0
_FEWEST_TPP = 4


@dataclass(frozen=True)
class Experts:
    """A decoder whose feed-forward layers are mixtures of gated experts.

    Args:
        vocab_size: entries of each of the two tables (untied).
        layers: blocks.
        width: of the residual stream.
        experts: in every layer, E.
        active: that a token passes through, k.
        expert_width: inner width of an expert; None means twice the width, as in the paper.
    """

    vocab_size: int
    layers: int
    width: int
    experts: int
    active: int
    expert_width: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.experts:
            raise UserError(f"A token passes through 1 to {self.experts} experts, not {self.active}.")

    @property
    def total(self) -> int:
        """Parameters stored."""
        return self._parameters(self.experts)

    @property
    def activated(self) -> int:
        """Parameters a token passes through."""
        return self._parameters(self.active)

    @property
    def sparsity(self) -> float:
        """Share of experts that a token leaves out."""
        return 1 - self.active / self.experts

    def tokens_per_parameter(self, tokens: float) -> float:
        """TPP: training tokens over *total* parameters."""
        return tokens / self.total

    def _parameters(self, experts: int) -> int:
        inner = 2 * self.width if self.expert_width is None else self.expert_width
        layer = 4 * self.width**2 + experts * 3 * self.width * inner + self.width * self.experts
        return 2 * self.vocab_size * self.width + self.layers * layer


@dataclass(frozen=True)
class SparsityLaw:
    """Task loss over active parameters and tokens per total parameter, inside the range that was measured.

    Args:
        fit: constants (c, b, q), and a where active sizes differ; logarithms relative to `center`.
        center: geometric means of (N_active, TPP).
        active: smallest and largest active size measured.
        tpp: smallest and largest TPP measured.
    """

    fit: robust.RobustFit = field(repr=False, compare=False)
    center: tuple[float, float]
    active: tuple[float, float]
    tpp: tuple[float, float]

    @property
    def active_exponent(self) -> float | None:
        """a: relative change of task loss with active parameters; None where only one active size was measured."""
        return float(self.fit.theta[3]) if len(self.fit.theta) == 4 else None

    def predict(self, active: float, tpp: float) -> float:
        """Task loss of a model with so many active parameters and tokens per total parameter.

        Raises:
            UserError: another active size than the one measured, where there was only one.
        """
        return float(np.exp(_log_loss(self.fit.theta[None], self._place(active, tpp)))[0, 0])

    def interval(self, active: float, tpp: float, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Where a new model's task loss should fall. Raises as predict() does."""
        return self.fit.interval(_log_loss(self.fit.refits, self._place(active, tpp))[:, 0], level, seed)

    def optimum(self, level: float = 0.95) -> tuple[float, float, float]:
        """TPP of least task loss, and its interval.

        Raises:
            UserError: the task is monotone in the measured range, or its turn is within the noise.
        """
        q = self.fit.refits[:, 2]
        bends = q > 0
        best = self.center[1] * np.exp(-self.fit.refits[:, 1] / (2 * np.where(bends, q, np.nan)))
        inside = bends & (best > self.tpp[0]) & (best < self.tpp[1])
        if inside.mean() < level:
            side = (
                "fewer"
                if self.predict(self.active[0], self.tpp[0]) < self.predict(self.active[0], self.tpp[1])
                else "more"
            )
            raise UserError(
                f"No best number of tokens per parameter between {self.tpp[0]:.3g} and {self.tpp[1]:.3g}: in "
                f"{inside.mean():.0%} of refits the task loss turns inside that range. It is lower with {side}.",
                fix="A knowledge task does not turn; for a reasoning task measure sparser models or fewer tokens.",
            )
        _, b, q_best = self.fit.theta[:3]
        low, high = robust.between(best[inside], level)
        return float(self.center[1] * np.exp(-b / (2 * q_best))), low, high

    def to_dict(self) -> dict[str, float | None]:
        """Constants in plain logarithms of parameters and tokens per parameter, as JSON can hold them."""
        c, b, q = (float(value) for value in self.fit.theta[:3])
        n, t = np.log(self.center)
        a = self.active_exponent
        constant = c - b * t + q * t**2 - (a or 0.0) * n
        return {"c": float(constant), "a": a, "b": float(b - 2 * q * t), "q": q}

    def _place(self, active: float, tpp: float) -> np.ndarray:
        if not (active > 0 and tpp > 0):
            raise UserError(f"Active parameters and tokens per parameter must be positive: {active}, {tpp}.")
        known = self.active_exponent is not None
        if not known and not self.active[0] / _LEAST_ACTIVE_SPAN < active < self.active[1] * _LEAST_ACTIVE_SPAN:
            raise UserError(
                f"All models measured had about {self.active[0]:.3g} active parameters; what {active:.3g} would do "
                "is unknown.",
                fix="Fit models of several active sizes.",
            )
        return np.log([[active / self.center[0]], [tpp / self.center[1]]])


def fit(
    points: Sequence[tuple[float, float, float]] | np.ndarray,
    delta: float = 1e-3,
    spread: float | None = None,
    refits: int = 200,
    seed: int = 0,
) -> SparsityLaw:
    """Fits the parabola to families of models.

    Args:
        points: rows (active parameters, tokens per total parameter, task loss); compare at one number of tokens.
        delta: where the Huber loss turns from square to linear, in log loss.
        spread: standard deviation of log task loss over seeds where it is known.
        refits: simulated refits, for the intervals.
        seed: of the simulation.

    Raises:
        UserError: fewer than four TPP or less than a factor of 4 between them, fewer points than constants, or active
            sizes that say the same as TPP.
    """
    table = np.asarray(points, dtype=float)
    if table.ndim != 2 or table.shape[1] != 3:
        raise UserError("Points must be rows of (active parameters, tokens per total parameter, task loss).")
    if not (np.isfinite(table).all() and (table > 0).all()):
        raise UserError("Points must be positive and finite.", fix="Leave out runs that diverged.")
    active, tpp, loss = table.T
    separate = active.max() >= _LEAST_ACTIVE_SPAN * active.min()
    _refuse_narrow(active, tpp, 3 + int(separate), spread)
    center = (float(np.exp(np.log(active).mean())), float(np.exp(np.log(tpp).mean())))
    place = np.log([active / center[0], tpp / center[1]])
    columns = np.stack([np.ones_like(loss), place[1], place[1] ** 2, place[0]][: 3 + int(separate)], axis=1)
    if np.linalg.cond(columns / np.linalg.norm(columns, axis=0)) > 100:
        raise UserError(
            "Active parameters and tokens per parameter move together in these models: their effects cannot be told "
            "apart.",
            fix="Vary the number of experts at a fixed active size, and the active size at a fixed total.",
        )
    measured = np.log(loss)
    start = np.linalg.lstsq(columns, measured, rcond=None)[0]
    bounds = np.full(columns.shape[1], -1e3), np.full(columns.shape[1], 1e3)
    found = robust.fit(
        lambda theta: _log_loss(theta, place), measured, start[None], bounds, delta, spread, refits, seed
    )
    return SparsityLaw(found, center, (active.min(), active.max()), (tpp.min(), tpp.max()))


def route(logits: np.ndarray, active: int) -> np.ndarray:
    """Weights of the experts: softmax over the `active` largest logits [..., E], 0 for the others."""
    logits = np.asarray(logits, float)
    chosen = np.argsort(-logits, axis=-1, kind="stable")[..., :active]
    weights = np.zeros_like(logits)
    np.put_along_axis(weights, chosen, _softmax(np.take_along_axis(logits, chosen, axis=-1)), axis=-1)
    return weights


def balance_loss(logits: np.ndarray, active: int) -> float:
    """E sum_e f_e P_e of one layer's router logits [T, E]: 1 where all experts serve alike, E where one serves all.

    f_e is the share of routed tokens that go to expert e, P_e its mean probability.
    """
    logits = np.asarray(logits, float)
    served = (route(logits, active) > 0).mean(axis=0) / active
    return float(logits.shape[-1] * served @ _softmax(logits).mean(axis=0))


def z_loss(logits: np.ndarray) -> float:
    """Mean squared log normaliser of router logits [T, E]."""
    logits = np.asarray(logits, float)
    return float((np.logaddexp.reduce(logits, axis=-1) ** 2).mean())


def task_loss(log_probabilities: np.ndarray, answers: np.ndarray, counted: np.ndarray) -> float:
    """Mean cross-entropy of the answers' tokens alone.

    Args:
        log_probabilities: [T, V] of the token at each place.
        answers: [T] tokens.
        counted: [T], true where the token belongs to an answer and not to its prompt.

    Raises:
        UserError: no token counts.
    """
    if not np.any(counted):
        raise UserError("A task loss needs tokens of an answer; all of these belong to prompts.")
    picked = np.take_along_axis(log_probabilities, np.asarray(answers)[:, None], axis=-1)[:, 0]
    return float(-picked[np.asarray(counted, bool)].mean())


def _log_loss(theta: np.ndarray, place: np.ndarray) -> np.ndarray:
    active, tpp = place
    found = theta[:, :1] + theta[:, 1:2] * tpp + theta[:, 2:3] * tpp**2
    return found + theta[:, 3:4] * active if theta.shape[1] == 4 else found


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def _refuse_narrow(active: np.ndarray, tpp: np.ndarray, constants: int, spread: float | None) -> None:
    different = len(np.unique(np.round(np.log(tpp), 2)))
    if different < _FEWEST_TPP or tpp.max() < _LEAST_TPP_SPAN * tpp.min():
        raise UserError(
            f"A turn in tokens per parameter needs {_FEWEST_TPP} values over a factor of {_LEAST_TPP_SPAN:g}; there "
            f"are {different}, from {tpp.min():.3g} to {tpp.max():.3g}.",
            fix="Train the same width with more experts.",
        )
    if len(active) <= constants and spread is None:
        raise UserError(f"{constants} constants need more than {len(active)} models.", fix="Train more models.")
