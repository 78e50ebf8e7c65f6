"""Are attentions cheaper to drop than MLPs, and does similarity say which ones?

Of the trained model one, two and three attentions are dropped, or MLPs, or any of both, or whole blocks, those whose
output is most similar to their input. Counted is what that adds to the held-out loss, against all choices of as many
attentions (or MLPs): their mean is what a random choice costs, their least what is possible. The first block is unlike
the others, so the mean over choices without it is also said.

The claim asks that attention is cheaper than the MLP at every count, by two standard errors over parts of the text, and
that similarity beats the random choice for both at every count. What it costs by parameter stands beside it.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from typing import Any

from torch import Tensor

from thalweg import catalog
from thalweg.arena.claims.finding import Finding, paired
from thalweg.arena.claims.spread import spread
from thalweg.arena.claims.trained import CONTEXT, Trained, trained
from thalweg.models.sublayers import ATTENTION, MLP, sublayers_of
from thalweg.models.text_loss import text_loss
from thalweg.models.walker import named_blocks

WINDOWS, COUNTS, PARTS = 64, (1, 2, 3), 8
WAYS = (ATTENTION, MLP, "joint", "block")


def dropped_halves(
    seed: int = 0, source: Trained | None = None, windows: int = WINDOWS, counts: tuple[int, ...] = COUNTS
) -> Finding:
    """Rises of the held-out loss; `source`: a trained model and its text, the shared one if left out."""
    given = source or trained()
    text = given.calibration(windows, seed)
    held = spread(given.store.held_out, windows, CONTEXT).tensor_split(min(PARTS, windows))
    dense = _losses(given.model(), held)
    numbers: dict[str, Any] = {"held-out loss": round(statistics.fmean(dense), 4)}
    chosen: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    random: dict[str, list[float]] = {ATTENTION: [], MLP: []}
    sizes: dict[str, list[int]] = {way: [] for way in WAYS}
    for way, count in itertools.product(WAYS, counts):
        model = given.model()
        found = catalog.resolve("llm_drop")(what=way, count=count).compress(model, text)
        chosen[way].append([after - before for after, before in zip(_losses(model, held), dense, strict=True)])
        sizes[way].append(found["parameters_dropped"])
        numbers[f"dropped, {way} {count}"] = " ".join(f"{one['kind']}{one['block']}" for one in found["dropped"])
        if way in (ATTENTION, MLP):
            numbers[f"similarity {way}"] = [round(value, 4) for value in found["similarities"][way]]
            rises = _of_all_choices(given.model(), way, count, held, statistics.fmean(dense))
            random[way].append(statistics.fmean(rises.values()))
            later = [rise for places, rise in rises.items() if 0 not in places]
            numbers[f"rise of the best choice, {way} {count}"] = round(min(rises.values()), 4)
            numbers[f"rise of a random choice without the first, {way} {count}"] = round(statistics.fmean(later), 4)
    for way in WAYS:
        means = [statistics.fmean(rises) for rises in chosen[way]]
        numbers[f"rise, {way}"] = [round(value, 4) for value in means]
        numbers[f"rise a million parameters, {way}"] = [
            round(value / size * 1e6, 4) for value, size in zip(means, sizes[way], strict=True)
        ]
    numbers |= {f"rise of a random choice, {way}": [round(value, 4) for value in random[way]] for way in random}
    return _judged(chosen, random, sizes, counts, numbers)


def _judged(
    chosen: dict[str, list[list[float]]],
    random: dict[str, list[float]],
    sizes: dict[str, list[int]],
    counts: tuple[int, ...],
    numbers: dict[str, Any],
) -> Finding:
    """Rises by way and count, in each part of the text; of a random choice; parameters by way and count."""
    gaps = [paired(one, other) for one, other in zip(chosen[ATTENTION], chosen[MLP], strict=True)]
    numbers |= {
        "attention less MLP": [round(mean, 4) for mean, _ in gaps],
        "attention less MLP, standard error": [round(error, 4) if math.isfinite(error) else "-" for _, error in gaps],
    }
    means = {way: [statistics.fmean(rises) for rises in chosen[way]] for way in chosen}
    better = all(one < other for way in random for one, other in zip(means[way], random[way], strict=True))
    cheaper = all(mean < -2 * error for mean, error in gaps)
    dearer = any(mean > 2 * error for mean, error in gaps)
    by_size = {way: [one / size * 1e6 for one, size in zip(means[way], sizes[way], strict=True)] for way in random}
    return Finding(
        numbers=numbers,
        holds=False if dearer or not better else (True if cheaper else None),
        sentence=(
            f"Dropping the {_listed(counts, 'd')} most similar attentions adds {_listed(means[ATTENTION])} nats, MLPs "
            f"{_listed(means[MLP])}; a random choice {_listed(random[ATTENTION])} and {_listed(random[MLP])}. Of a "
            f"million parameters: {_listed(by_size[ATTENTION], '.2f')} and {_listed(by_size[MLP], '.2f')}. Similarity "
            f"{'is' if better else 'is not always'} better than chance; attention is "
            f"{'cheaper' if cheaper else 'dearer' if dearer else 'neither cheaper nor dearer'}."
        ),
    )


def _listed(values: Any, form: str = ".3f") -> str:
    return ", ".join(format(value, form) for value in values)


def _losses(model: Any, held: tuple[Tensor, ...]) -> list[float]:
    return [text_loss(model, part) for part in held]


def _of_all_choices(
    whole: Any, kind: str, count: int, held: tuple[Tensor, ...], dense: float
) -> dict[tuple[int, ...], float]:
    """The rise of every choice of so many blocks whose attention (or MLP) is zero."""
    rises = {}
    for places in itertools.combinations(range(len(named_blocks(whole))), count):
        model = copy.deepcopy(whole)
        for place in places:
            name, block = named_blocks(model)[place]
            half = next(half for half in sublayers_of(block, name) if half.kind == kind)
            for linear in half.linears:
                for value in linear.module.parameters():
                    value.detach().zero_()
        rises[places] = statistics.fmean(_losses(model, held)) - dense
    return rises
