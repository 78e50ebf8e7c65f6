"""Which shape of model is best on a given machine? Predicted loss against predicted latency and memory.

    min over shapes of L(shape)   such that   latency(shape) <= limit   and   memory(shape) <= limit

Here is L; `pareto` looks for the shapes. A shape is depth l, width d, cache width d_m, activated expansion r and
activation rate rho = K / E; latency and memory are `roofline`'s. Loss at a fixed number of tokens is a surrogate fitted
to models trained with one recipe. The paper's own form of it is not known to us, so two are *ours*, and which is better
is asked of held-out models (choose()):

    additive        L = E + sum over v of a_v x_v^(-p_v),     x = l, d, d_m, r, 1 / rho
    log_quadratic   log L = c + sum b_v log x_v + sum over v <= w of q_vw log x_v log x_w

A quantity that no model varied is left out, and shapes that vary it are refused; so are shapes far outside what was
trained, since neither form is a law of nature. Equal tokens are not equal training FLOPs: a sparse model looks better
here than by its training bill, and what routing costs beyond its arithmetic is not in the latency.

Source: Hardware Co-Design Scaling Laws via Roofline Modelling for On-Device LLMs (Sun et al. 2026, arXiv:2602.10377):
the problem and its variables. Units: nats a token (any loss, kept), seconds, bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from thalweg.errors import UserError
from thalweg.laws import robust
from thalweg.laws.roofline import Architecture

# 1 / rho, so that more of anything should lower the loss.
MEASURES: Mapping[str, Callable[[Architecture], float]] = {
    "layers": lambda one: one.layers,
    "width": lambda one: one.width,
    "kv_width": lambda one: one.kv_width,
    "expansion": lambda one: one.expansion,
    "sparsity_factor": lambda one: 1 / one.activation_rate,
}
# Three values show a bend, which may be followed this factor beyond them; two show a line between them and no more.
_REACH = 2.0
_ALIKE = 0.999

Points = Sequence[tuple[Architecture, float]]


@dataclass(frozen=True)
class Surrogate:
    """Loss of a shape, at the tokens and with the recipe of the models it was fitted to.

    Args:
        form: "additive" or "log_quadratic".
        variables: quantities that it depends on.
        center: geometric mean of each, in whose units the constants are.
        allowed: lowest and highest value of every quantity that may be asked for.
        fit: how it was fitted.
        bent: variables with three values or more, which have a square in the log-quadratic form.
    """

    form: str
    variables: tuple[str, ...]
    center: tuple[float, ...]
    allowed: Mapping[str, tuple[float, float]]
    fit: robust.RobustFit = field(repr=False, compare=False)
    bent: tuple[bool, ...]

    def predict(self, architecture: Architecture) -> float:
        """Loss of a shape.

        Raises:
            UserError: a shape outside what the models that were trained can speak for.
        """
        return float(np.exp(self._log_loss(self.fit.theta[None], architecture))[0, 0])

    def interval(self, architecture: Architecture, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Where the loss of a new model of that shape should fall. Raises as predict() does."""
        return self.fit.interval(self._log_loss(self.fit.refits, architecture)[:, 0], level, seed)

    def covers(self, architecture: Architecture) -> bool:
        """Whether predict() would answer."""
        return self._outside(architecture) is None

    def _outside(self, architecture: Architecture) -> str | None:
        for name, (low, high) in self.allowed.items():
            if not low * (1 - 1e-9) <= MEASURES[name](architecture) <= high * (1 + 1e-9):
                return name
        return None

    def _log_loss(self, theta: np.ndarray, architecture: Architecture) -> np.ndarray:
        wrong = self._outside(architecture)
        if wrong is not None:
            low, high = self.allowed[wrong]
            raise UserError(
                f"A {wrong} of {MEASURES[wrong](architecture):g} is outside what the trained models can speak for, "
                f"{low:g} to {high:g}.",
                fix="Train models there and fit again.",
            )
        return _FORMS[self.form](theta, _logs([architecture], self.variables, self.center), self.bent)


def fit(
    points: Points,
    form: str = "additive",
    variables: Sequence[str] | None = None,
    delta: float = 1e-3,
    spread: float | None = None,
    refits: int = 200,
    seed: int = 0,
) -> Surrogate:
    """Fits one form to trained models.

    Args:
        points: (architecture, final loss), one recipe and one number of tokens.
        form: "additive" or "log_quadratic".
        variables: names in MEASURES; None means all that the models vary.
        delta: where the Huber loss turns from square to linear, in log loss.
        spread: standard deviation of log loss over seeds where it is known.
        refits: simulated refits, for the intervals.
        seed: of the simulation.

    Raises:
        UserError: nothing varied, no more models than constants, or quantities that move together.
    """
    losses, names, bent, logs, center = _prepare(points, form, variables)
    starts, bounds = _starts(form, losses, logs, bent)
    if len(points) <= starts.shape[1]:
        raise UserError(
            f"The {form} form over {', '.join(names)} has {starts.shape[1]} constants; {len(points)} models are too "
            "few.",
            fix="Train more models, or give fewer variables.",
        )
    found = robust.fit(
        lambda theta: _FORMS[form](theta, logs, bent), np.log(losses), starts, bounds, delta, spread, refits, seed
    )
    return Surrogate(form, names, center, _allowed([one for one, _ in points], names, variables), found, bent)


def choose(
    points: Points, variables: Sequence[str] | None = None, folds: int = 4
) -> tuple[Surrogate, dict[str, float]]:
    """The form that predicts held-out models best, fitted to all, and each form's held-out error.

    Args:
        points: as for fit().
        variables: as for fit().
        folds: parts of which each is held out once; every folds-th model makes a part.

    Returns:
        The surrogate, and the median relative error of each form that the models suffice for.

    Raises:
        UserError: the models suffice for no form.
    """
    errors: dict[str, float] = {}
    refused: UserError | None = None
    for form in _FORMS:
        try:
            errors[form] = _held_out(points, form, variables, folds)
        except UserError as error:
            refused = error
    if not errors:
        raise refused or UserError("There is no form to choose from.")
    return fit(points, min(errors, key=lambda form: errors[form]), variables), errors


def _prepare(
    points: Points, form: str, variables: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...], tuple[bool, ...], np.ndarray, tuple[float, ...]]:
    """Losses, variables, which of them bend, their logs [V, P], and the center of these."""
    if form not in _FORMS:
        raise UserError(f"There is no form {form!r}.", fix=f"Choose of {', '.join(_FORMS)}.")
    losses = np.array([loss for _, loss in points], dtype=float)
    if not len(losses) or not (np.isfinite(losses).all() and (losses > 0).all()):
        raise UserError("Losses must be positive and finite.", fix="Leave out runs that diverged.")
    for name in variables or ():
        if name not in MEASURES:
            raise UserError(f"There is no quantity {name!r}.", fix=f"Choose of {', '.join(MEASURES)}.")
    values = {name: np.array([MEASURES[name](one) for one, _ in points]) for name in variables or MEASURES}
    counts = {name: len(np.unique(np.round(np.log(of), 6))) for name, of in values.items()}
    names = tuple(name for name, count in counts.items() if count > 1)
    if not names:
        raise UserError("All these models have the same shape.", fix="Train models of several shapes.")
    raw = np.log([values[name] for name in names])
    logs = raw - raw.mean(axis=1, keepdims=True)
    alike = np.abs(np.atleast_2d(np.corrcoef(logs))) - np.eye(len(names)) > _ALIKE
    if alike.any():
        first, second = (names[i] for i in np.argwhere(alike)[0])
        raise UserError(
            f"{first} and {second} move together in all these models: their effects cannot be told apart.",
            fix=f"Vary them separately, or give variables without {second}.",
        )
    bent = tuple(counts[name] > 2 for name in names)
    return losses, names, bent, logs, tuple(float(np.exp(mean)) for mean in raw.mean(axis=1))


def _logs(shapes: Sequence[Architecture], variables: Sequence[str], center: Sequence[float]) -> np.ndarray:
    return np.log(
        [[MEASURES[name](one) / middle for one in shapes] for name, middle in zip(variables, center, strict=True)]
    )


def _allowed(
    shapes: Sequence[Architecture], names: Sequence[str], variables: Sequence[str] | None
) -> dict[str, tuple[float, float]]:
    """Quantities that no model varied stay where they are; those the caller left out on purpose are not watched."""
    found = {}
    for name in variables or MEASURES:
        values = np.array([MEASURES[name](one) for one in shapes])
        reach = _REACH if len(np.unique(values)) > 2 else 1.0
        found[name] = (float(values.min()) / reach, float(values.max()) * reach)
    return found


def _additive(theta: np.ndarray, logs: np.ndarray, bent: Sequence[bool]) -> np.ndarray:
    """Constants (log E, log a_v..., p_v...)."""
    count = len(logs)
    lines = theta[:, 1 : count + 1, None] - theta[:, count + 1 :, None] * logs
    floor = np.broadcast_to(theta[:, :1, None], (len(theta), 1, logs.shape[1]))
    return np.logaddexp.reduce(np.concatenate([floor, lines], axis=1), axis=1)


def _log_quadratic(theta: np.ndarray, logs: np.ndarray, bent: Sequence[bool]) -> np.ndarray:
    return theta @ _columns(logs, bent)


def _columns(logs: np.ndarray, bent: Sequence[bool]) -> np.ndarray:
    """1, every log, and every product of two; squares only where three values show one."""
    products = [logs[i] * logs[j] for i in range(len(logs)) for j in range(i, len(logs)) if i != j or bent[i]]
    return np.stack([np.ones(logs.shape[1]), *logs, *products])


_FORMS: Mapping[str, Callable[[np.ndarray, np.ndarray, Sequence[bool]], np.ndarray]] = {
    "additive": _additive,
    "log_quadratic": _log_quadratic,
}


def _starts(
    form: str, losses: np.ndarray, logs: np.ndarray, bent: Sequence[bool]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Constants to start from [S, k], and their bounds."""
    if form == "log_quadratic":
        columns = _columns(logs, bent)
        if np.linalg.matrix_rank(columns, tol=1e-6 * np.linalg.norm(columns)) < min(columns.shape):
            raise UserError(
                "These models do not vary enough combinations of shapes for a log-quadratic form.",
                fix="Train combinations that are missing, or use the additive form.",
            )
        start = np.linalg.lstsq(columns.T, np.log(losses), rcond=None)[0]
        return start[None], (np.full(len(start), -1e3), np.full(len(start), 1e3))
    count = len(logs)
    generator = np.random.default_rng(0)
    rows = []
    for share in (0.1, 0.4, 0.7, 0.85, 0.95):
        for exponent in (0.1, 0.3, 0.6, 1.0, 2.0):
            above = math.log((losses - share * losses.min()).mean() / count)
            rows.append([math.log(share * losses.min()), *[above] * count, *[exponent] * count])
    # Variables matter unequally: the same starts again, their scales and exponents shaken.
    shaken = np.array(rows * 3)
    shaken[len(rows) :, 1:] += generator.normal(scale=0.7, size=shaken[len(rows) :, 1:].shape)
    low = np.array([-30.0, *[-30.0] * count, *[1e-3] * count])
    high = np.array([10.0, *[10.0] * count, *[6.0] * count])
    return shaken, (low, high)


def _held_out(points: Points, form: str, variables: Sequence[str] | None, folds: int) -> float:
    errors = []
    for fold in range(folds):
        kept = [point for place, point in enumerate(points) if place % folds != fold]
        law = fit(kept, form, variables, refits=0)
        held = [point for place, point in enumerate(points) if place % folds == fold]
        errors += [abs(law.predict(one) / loss - 1) for one, loss in held if law.covers(one)]
    if not errors:
        raise UserError("No held-out model lies within what the others can speak for.", fix="Train more models.")
    return float(np.median(errors))
