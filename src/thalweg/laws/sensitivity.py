"""Learning-rate sensitivity: how much worse training gets, on average, when the rate is not the best one.

    S = mean over rates of [ min(loss(rate), loss at initialisation) - least loss over the rates ]

A run that diverged counts with the loss at initialisation, as one that learnt nothing. Source: "Small-scale proxies for
large-scale Transformer training instabilities" (2023, arXiv:2309.14322).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from thalweg.errors import UserError

# The source's grid of peak rates: three decades.
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


def sensitivity(losses: Sequence[float | None], initial: float) -> float:
    """S of final losses over a grid of rates.

    Args:
        losses: one a rate, in any unit; None or a number that is not finite for a run that diverged.
        initial: the loss before training, in the same unit.

    Raises:
        UserError: no loss at all.
    """
    if not losses:
        raise UserError("there are no losses", where="sensitivity")
    capped = [initial if loss is None or not math.isfinite(loss) else min(loss, initial) for loss in losses]
    return sum(capped) / len(capped) - min(capped)
