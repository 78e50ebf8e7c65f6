"""What curves can tell about the annealing law: which losses count, what must be seen, and how errors are resampled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from thalweg.errors import UserError
from thalweg.laws import annealing_fit
from thalweg.laws.annealing_features import carried

FEWEST_POINTS = 8
LEAST_GROWTH = 3.0  # of S1 over the points: over less, any exponent fits
LEAST_FALL = 0.02  # of the rate below its peak: less is no annealing
CERTAIN = 0.01  # of the loss: half width up to which the worth of annealing counts as known, however little that is
CONSTANTS = 4
_T = 2.0
_ROUGH = 0.1


def check_seen(points: int, fall: float, walk: np.ndarray) -> None:
    """Refuse curves that show too little, before anything is fitted.

    Args:
        points: losses after the warm-up.
        fall: how far below its peak the rate had come by the last loss, as a share of it; of the best curve.
        walk: S1 at the losses.

    Raises:
        UserError: too few losses, a rate that never falls, or too short a stretch.
    """
    if points < FEWEST_POINTS:
        raise UserError(
            f"The annealing law needs at least {FEWEST_POINTS} losses after the warm-up; there are {points}.",
            fix="Evaluate more often, or fit training losses.",
        )
    if fall < LEAST_FALL:
        raise UserError(
            "The rate never falls in these curves, so nothing tells what annealing is worth.",
            fix="Add a run whose schedule decays, such as cosine or wsd.",
        )
    if walk.max() < LEAST_GROWTH * walk.min():
        raise UserError(
            f"The losses span too short a stretch: the sum of rates grows only {walk.max() / walk.min():.1f}-fold, "
            f"and must {LEAST_GROWTH:g}-fold for an exponent to show.",
            fix="Start earlier after the warm-up, or train longer.",
        )


def check_identified(theta: np.ndarray, walk: np.ndarray, annealed: np.ndarray, loss: np.ndarray) -> None:
    """Refuse a fit whose curves leave open what annealing is worth; `loss` in logs.

    The fitted effect C * S2, where it is largest, must be known to half of itself or to 1% of the loss (two standard
    errors of the linearised fit, with errors of neighbours that go together).

    Raises:
        UserError: it is not, or the losses do not fall as a power of S1 at all.
    """
    if theta[1] <= 0 or theta[2] <= 1e-6:
        raise UserError(
            "These losses do not fall as a power of the steps, so the annealing law does not describe them.",
            fix="Leave out what diverged, or give a longer run.",
        )
    fitted, slopes = annealing_fit.slopes(theta[None], walk, annealed)
    residuals = loss - fitted[0]
    # In units of the columns' lengths the inverse keeps its digits.
    lengths = np.sqrt((slopes[0] ** 2).sum(axis=0)) + 1e-300
    scaled = slopes[0] / lengths
    covariance = np.linalg.pinv(scaled.T @ scaled, rcond=1e-14)
    error = math.sqrt(max(covariance[3, 3], 0.0)) / lengths[3] * _error_size(residuals)
    most = int(np.argmax(np.abs(annealed)))
    share = abs(float(annealed[most])) / math.exp(loss[most])
    if _T * error * share > max(CERTAIN, 0.5 * float(theta[3]) * share):
        raise UserError(
            f"These curves cannot tell annealing from mere progress: its worth is {theta[3] * share:.1%} of the loss, "
            f"give or take {_T * error * share:.1%}.",
            fix="Add a run with another schedule, such as wsd beside cosine, or evaluate more often.",
        )


def _error_size(residuals: np.ndarray) -> float:
    """Standard deviation of an independent error that would do as much harm as these, which go along together."""
    chained = chain([residuals])
    return spread(residuals, chained) * math.sqrt((1 + chained) / (1 - chained))


def chain(residuals: Sequence[np.ndarray]) -> float:
    """Correlation of neighbouring errors within curves, 0 to 0.9; the fit takes some of it away, which is put back."""
    squares = sum(float(part @ part) for part in residuals)
    if squares == 0:
        return 0.0
    seen = sum(float(part[1:] @ part[:-1]) for part in residuals) / squares
    return min(max(seen + CONSTANTS * (1 + max(seen, 0.0)) / sum(map(len, residuals)), 0.0), 0.9)


def spread(residuals: np.ndarray, chained: float) -> float:
    """Standard deviation of the errors behind residuals: chained ones are worth fewer, and four constants fitted."""
    points = len(residuals)
    spare = max(points - CONSTANTS * (1 + chained) / (1 - chained), points / 4)
    return math.sqrt(float(residuals @ residuals) / spare)


def resampled(
    residuals: Sequence[np.ndarray], block: int | None, draws: int, generator: np.random.Generator
) -> np.ndarray:
    """Errors as other runs might have had them [draws, P], by blocks of steps.

    Residuals are freed of what they take over from their neighbour (chain()), blocks of what is left are drawn with
    random signs, roughened with a tenth of normal variance, and chained again. The size of all errors of a draw is
    drawn too, as far as so many residuals leave it open.

    Args:
        residuals: of each curve, log(measured / fitted).
        block: points in a block; the cube root of their number when left out.
    """
    together = np.concatenate(residuals)
    points, chained = len(together), chain(residuals)
    size, rest = spread(together, chained), math.sqrt(1 - chained**2)
    freed = np.concatenate([np.append(part[:1], (part[1:] - chained * part[:-1]) / rest) for part in residuals])
    freed /= max(math.sqrt(float(freed @ freed) / points), 1e-300)
    length = block or max(1, round(points ** (1 / 3)))
    drawn = []
    for part in residuals:
        shape = (draws, -(-len(part) // length))
        places = generator.integers(0, points, size=shape)[..., None] + np.arange(length)
        blocks = freed[places % points] * generator.choice([-1.0, 1.0], size=shape)[..., None]
        new = blocks.reshape(draws, shape[1] * length)[:, : len(part)]
        # A robust fit goes exactly through a few points; drawn again they would make every refit look too sure.
        new = math.sqrt(1 - _ROUGH) * new + math.sqrt(_ROUGH) * generator.normal(size=new.shape)
        # The first error of a curve has no neighbour to take from, and the same size as all.
        new[:, 0] /= max(rest, 1e-300)
        drawn.append(carried(rest * new, chained))
    freedom = max((points - CONSTANTS) * (1 - chained) / (1 + chained), 3.0)
    return np.concatenate(drawn, axis=1) * size * np.sqrt(freedom / generator.chisquare(freedom, size=(draws, 1)))
