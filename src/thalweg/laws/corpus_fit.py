"""The law of one corpus from the few runs that a small budget pays for: as many constants as they can carry.

    five    L = E + A / N^alpha + B / D^beta, all constants fitted
    three   A, B and E fitted, the exponents those of the law before
    two     E fitted, and one factor for both falling parts, whose shape is that of the law before

Exponents differ less from corpus to corpus than scales do, and a dozen short runs seldom tell them: a fit that can then
choose freely sends an exponent to the end of what is allowed, and what it says of larger runs is worth nothing. So each
stage is taken only if the constants of nearly all its refits to simulated runs (see `robust`) are ones that a law can
have. Its refits then give the interval of every forecast, the wider the farther away.

Units: N parameters in matrix products, D tokens read once that the tokens seen are worth, L bits a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thalweg.errors import UserError
from thalweg.laws import chinchilla, fitting, robust
from thalweg.laws.chinchilla import ChinchillaLaw

REFITS = 200
_DELTA = 1e-3
# Exponents that were published for language models lie between 0.2 and 0.6; far beyond, a term is a constant or a wall.
_EXPONENTS = (0.05, 2.0)
# Every term is at least this share of the loss somewhere among the runs, or they do not show it.
_PART = 0.01
# Refits that may break these rules: more, and the runs leave the constants open.
_OPEN = 0.2
# Runs more than constants, so that there is an error to speak of.
_SPARE = 3
# Standard deviation, over corpora, of the logarithm of an exponent that is taken from another one: the published 0.34
# and 0.28 (Hoffmann et al.), 0.35 and 0.37 (Besiroglu et al.) and ours, 0.42 and 0.56, differ by about this.
_CORPORA = 0.25
_HELD = np.array([[-60.0, -60.0, -30.0, 0.0, 0.0], [120.0, 120.0, 10.0, 0.0, 0.0]])


@dataclass(frozen=True)
class CorpusFit:
    """A law with its refits, how many constants it was given (5, 3 or 2), and a sentence on that."""

    law: ChinchillaLaw
    constants: int
    told: str


def fit(
    points: Sequence[Sequence[float]] | np.ndarray, known: ChinchillaLaw, refits: int = REFITS, seed: int = 0
) -> CorpusFit:
    """Fit the largest of the three laws that the points determine.

    Args:
        points: rows (parameters, tokens, final loss).
        known: the law that lends its exponents, or its shape.
        refits: fits to simulated runs, for intervals. seed: of the simulation.

    Raises:
        UserError: fewer than three runs, or numbers that are not positive.
    """
    table = np.asarray(points, dtype=float)
    if table.ndim != 2 or table.shape[1] != 3 or len(table) < 3 or not (np.isfinite(table).all() and (table > 0).all()):
        raise UserError("A law needs at least three finished runs, as positive (parameters, tokens, loss).")
    n, d, loss = np.log(table).T
    sizes, lengths = len(np.unique(n)), len(np.unique(d))
    runs = f"{len(table)} runs"
    why = f"{runs} over {sizes} sizes and {lengths} numbers of tokens are too few for its exponents"
    if len(table) >= 5 + _SPARE and min(sizes, lengths) >= 3:
        law = chinchilla.fit(table, refits=refits, seed=seed)
        if _told(law, n, d):
            return CorpusFit(law, 5, f"all constants fitted to {runs}")
        why = f"{runs} leave its exponents open"
    if len(table) >= 3 + _SPARE and min(sizes, lengths) >= 2:
        law = _three(n, d, loss, known, refits, seed)
        if _told(law, n, d):
            return CorpusFit(law, 3, f"A, B and E fitted, alpha and beta as known before: {why}")
        why = f"{runs} leave the others open"
    law = _two(n, d, loss, known, refits, seed)
    return CorpusFit(law, 2, f"E and one factor for A and B fitted, alpha, beta and A / B as known before: {why}")


def _told(law: ChinchillaLaw, n: np.ndarray, d: np.ndarray) -> bool:
    """Whether the constants, and nearly all that they might have been, are ones that a law can have."""
    best = np.array([[*np.log([law.A, law.B, law.E]), law.alpha, law.beta]])
    sound = [_sound(theta, n, d) for theta in (best, law.refits)]
    return bool(sound[0].all()) and float(sound[1].mean()) >= 1 - _OPEN


def _sound(theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    exponents = theta[:, 3:]
    lines = fitting.terms(theta, n, d)
    shares = np.exp(lines - np.logaddexp.reduce(lines, axis=0)).max(axis=2)
    allowed = ((exponents >= _EXPONENTS[0]) & (exponents <= _EXPONENTS[1])).all(axis=1)
    return allowed & (shares >= _PART).all(axis=0)


def _three(
    n: np.ndarray, d: np.ndarray, loss: np.ndarray, known: ChinchillaLaw, refits: int, seed: int
) -> ChinchillaLaw:
    # Every split of a loss in the middle into the three terms, on a grid.
    middle, shares = float(np.median(loss)), np.log([0.02, 0.1, 0.3, 0.6, 0.9])
    split = np.stack([axis.ravel() for axis in np.meshgrid(shares, shares, shares)], axis=1)
    starts = _through(np.tile(_exponents(known), (len(split), 1)), n.mean(), d.mean(), middle + split)
    low, high = _HELD.copy()
    low[3:] = high[3:] = _exponents(known)
    law = _lines(n, d)
    theta = robust.minimise(law, loss, starts, (low, high), _DELTA)
    simulated, errors, sigma = robust.simulate(law(theta[None])[0], loss, 3, None, refits, seed)
    drawn = _drawn(known, refits, seed)
    # With other exponents the terms meet the runs in their middle as before, and are fitted from there.
    terms = fitting.terms(theta[None], n.mean(keepdims=True), d.mean(keepdims=True))[:, 0, 0]
    others = _through(drawn, n.mean(), d.mean(), np.tile(terms, (refits, 1)))
    low, high = (np.tile(bound, (refits, 1)) for bound in _HELD)
    low[:, 3:] = high[:, 3:] = drawn
    others = robust.refine(law, simulated, others, (low, high), _DELTA, rounds=60)
    return chinchilla.from_theta(theta, others, errors, sigma)


def _two(n: np.ndarray, d: np.ndarray, loss: np.ndarray, known: ChinchillaLaw, refits: int, seed: int) -> ChinchillaLaw:
    base = np.array([*np.log([known.A, known.B, known.E]), *_exponents(known)])[None]
    terms = fitting.terms(base, n.mean(keepdims=True), d.mean(keepdims=True))[:, 0, 0]
    others = _through(_drawn(known, refits, seed), n.mean(), d.mean(), np.tile(terms, (refits, 1)))

    def law(shapes: np.ndarray) -> robust.Law:
        falling = np.logaddexp(*fitting.terms(shapes, n, d)[:2])

        def scaled(theta: np.ndarray) -> np.ndarray:
            each = np.repeat(falling, len(theta) // len(falling), axis=0)  # a refit is asked for several at once
            return np.logaddexp(theta[:, :1] + each, theta[:, 1:])

        return scaled

    # Both parts stay above a thousandth of the loss: a law that falls no more pairs no size with any tokens.
    middle, least = float(np.median(loss)), np.log(1e-3)
    there = float(np.logaddexp(terms[0], terms[1]))
    bounds = np.array([middle - there + least, middle + least]), np.array([middle - there + 3.0, middle + 3.0])
    shares = np.array([0.01, 0.05, 0.2, 0.5, 0.8])
    starts = np.stack([middle - there + np.log(shares), middle + np.log1p(-shares)], axis=1)
    theta = robust.minimise(law(base), loss, starts, bounds, _DELTA)
    simulated, errors, sigma = robust.simulate(law(base)(theta[None])[0], loss, 2, None, refits, seed)
    scales = robust.refine(law(others), simulated, np.tile(theta, (refits, 1)), bounds, _DELTA, rounds=60)
    return chinchilla.from_theta(_with(base, theta[None])[0], _with(others, scales), errors, sigma)


def _with(shapes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Constants [S, 5]: both falling parts times one factor, and E; the logarithms of those [S, 2]."""
    return np.concatenate([shapes[:, :2] + scales[:, :1], scales[:, 1:], shapes[:, 3:]], axis=1)


def _lines(n: np.ndarray, d: np.ndarray) -> robust.Law:
    return lambda theta: np.logaddexp.reduce(fitting.terms(theta, n, d), axis=0)


def _exponents(law: ChinchillaLaw) -> np.ndarray:
    return np.array([law.alpha, law.beta])


def _drawn(known: ChinchillaLaw, refits: int, seed: int) -> np.ndarray:
    """Exponents that this corpus might have [R, 2]."""
    return _exponents(known) * np.exp(_CORPORA * np.random.default_rng([seed, 1]).normal(size=(refits, 2)))


def _through(exponents: np.ndarray, n: float, d: float, terms: np.ndarray) -> np.ndarray:
    """Constants [S, 5] of exponents [S, 2]; at log size n and log tokens d the terms have these logarithms [S, 3]."""
    scales = terms + np.stack([exponents[:, 0] * n, exponents[:, 1] * d, np.zeros(len(terms))], axis=1)
    return np.concatenate([scales, exponents], axis=1)
