"""The schedule of lowest forecast: every card of closed form, over the options that tuning looks at.

For each way to choose the texts (as a decay's shape) the numbers are drawn evenly from their ranges, and once more from
a quarter of them around the best. Warm-up and floors that no card offers for tuning stay where they are: the law knows
nothing of what a warm-up is good for, and would always do without.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from thalweg import catalog
from thalweg.catalog import Card, Value
from thalweg.errors import RecipeError
from thalweg.laws.lr_annealing import AnnealingLaw, warmup_steps
from thalweg.recipe import Choice
from thalweg.sessions.planned_rates import planned_rates
from thalweg.sessions.run_curves import RunCurve

DRAWS = 32
POINTS = 400  # at which a candidate is asked for its rate


def search(law: AnnealingLaw, run: RunCurve, steps: int, schedules: Sequence[Choice]) -> Choice:
    """The schedule whose final loss the law expects to be lowest after so many steps of a run.

    Args:
        schedules: to start from: their options stay, where tuning does not look at them.
    """
    scored: list[tuple[float, Choice]] = []

    def score(choice: Choice) -> float:
        scored.append((_score(law, run, steps, choice), choice))
        return scored[-1][0]

    for choice in schedules:
        score(choice)
        card = catalog.lookup(choice.name)
        for texts in _texts(card):
            ranges = {key: (0.0, 1.0) for key, option in card.options.items() if option.search}
            if not ranges:
                score(_changed(choice, card, texts, {}))
                continue
            for _ in range(2):
                places = _places(ranges)
                scores = [score(_changed(choice, card, texts, place)) for place in places]
                best = places[int(np.argmin(scores))]
                ranges = {key: (max(at - 0.125, 0.0), min(at + 0.125, 1.0)) for key, at in best.items()}
    return min(scored, key=lambda pair: pair[0])[1]


def _texts(card: Card) -> list[dict[str, Value]]:
    """Every way to choose the options that are texts."""
    chosen = {key: option.choices for key, option in card.options.items() if option.choices}
    return [dict(zip(chosen, values, strict=True)) for values in itertools.product(*chosen.values())]


def _places(ranges: dict[str, tuple[float, float]]) -> list[dict[str, float]]:
    """Evenly spread points of the box, a coordinate for each option."""
    from scipy.stats import qmc

    # Half a step off the corner where the sequence begins.
    points = (qmc.Sobol(len(ranges), scramble=False).random(DRAWS) + 0.5 / DRAWS) % 1.0
    return [
        {key: low + (high - low) * x for (key, (low, high)), x in zip(ranges.items(), row, strict=True)}
        for row in points.tolist()
    ]


def _changed(choice: Choice, card: Card, texts: dict[str, Value], place: dict[str, float]) -> Choice:
    options: dict[str, Value] = {**choice.options, **texts}
    for key, share in place.items():
        looked = card.options[key].search or {}
        low, high = float(looked["low"]), float(looked["high"])
        value = low * (high / low) ** share if looked.get("scale") == "log" else low + (high - low) * share
        # Three digits: more than the law can tell apart, and a name that can be read.
        short = float(f"{value:.3g}")
        options[key] = round(short) if card.options[key].type == "int" else short
    return Choice(name=choice.name, options=options)


def _score(law: AnnealingLaw, run: RunCurve, steps: int, choice: Choice) -> float:
    """The final loss expected, infinite where the options do not go together."""
    try:
        rates = planned_rates(choice, steps, run, points=POINTS)
    except RecipeError:
        return math.inf
    return float(law.predict(rates, [steps], warmup_steps(rates))[0])
