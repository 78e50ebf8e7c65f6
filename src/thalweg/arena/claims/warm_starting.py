"""Does going on from weights that were fitted to half of the data cost accuracy, and does shrinking give it back?

A network with two hidden layers learns to predict a character of code from the eight before it, first from half of the
examples, then from all of them, each time until it has 99% of them right. No context occurs twice, so it can. For the
second round it begins from

    scratch    a fresh initialisation                warm       the weights of the first round
    shrunk     those weights, shrunk and perturbed

and is then asked for examples it has not seen. Every arm has the learning rate that is best for it among those tried,
by the mean accuracy over draws of examples and initialisations. Counted are the steps of the second round.
"""

from __future__ import annotations

import copy
import math
import statistics

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg import catalog
from thalweg.arena.claims import small_text
from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.small_text import BEFORE, CHARACTERS

EXAMPLES, UNSEEN, DRAWS, BATCH, EPOCHS = 1600, 20_000, 8, 64, 200
RATES = (1.5e-3, 4e-3)
ENOUGH = 0.99  # of the training examples, as in the source
CLOSE = 0.005  # accuracy behind scratch that counts as none
FIRST_DRAW = 200  # the setting was chosen with other draws in view, so it is judged on these
ARMS = ("scratch", "warm", "shrunk")

Examples = tuple[Tensor, Tensor]


def warm_starting(
    seed: int = 0, examples: int = EXAMPLES, draws: int = DRAWS, rates: tuple[float, ...] = RATES
) -> Finding:
    """Accuracy on unseen examples and steps of the second round, by arm."""
    found: dict[tuple[str, float], list[tuple[float, int]]] = {(arm, rate): [] for arm in ARMS for rate in rates}
    for draw in range(FIRST_DRAW + draws * seed, FIRST_DRAW + draws * (seed + 1)):
        seen, unseen = _drawn(draw, examples)
        for rate in rates:
            for arm, result in _rounds(seen, unseen, rate, draw).items():
                found[arm, rate].append(result)
    best = {arm: max(rates, key=lambda rate: _mean(found[arm, rate], 0)) for arm in ARMS}
    accuracy = {arm: [right for right, _ in found[arm, best[arm]]] for arm in ARMS}
    steps = {arm: _mean(found[arm, best[arm]], 1) for arm in ARMS}
    gap, gap_error = _difference(accuracy["scratch"], accuracy["warm"])
    gain, gain_error = _difference(accuracy["shrunk"], accuracy["warm"])
    behind, _ = _difference(accuracy["scratch"], accuracy["shrunk"])
    mean = {arm: statistics.fmean(values) for arm, values in accuracy.items()}
    return Finding(
        numbers={
            **{f"accuracy {arm}": [round(value, 4) for value in accuracy[arm]] for arm in ARMS},
            **{f"steps {arm}": round(steps[arm], 1) for arm in ARMS},
            **{f"rate {arm}": best[arm] for arm in ARMS},
            "scratch over warm": round(gap, 4),
            "scratch over warm, standard error": round(gap_error, 4),
            "shrunk over warm": round(gain, 4),
            "shrunk over warm, standard error": round(gain_error, 4),
        },
        holds=gap > 2 * gap_error and gain > 2 * gain_error and behind <= CLOSE and steps["shrunk"] < steps["scratch"],
        sentence=(
            f"Unseen characters right after the second round: {mean['scratch']:.1%} from scratch, {mean['warm']:.1%} "
            f"from warm weights, {mean['shrunk']:.1%} from shrunk and perturbed ones, in {steps['scratch']:.0f}, "
            f"{steps['warm']:.0f} and {steps['shrunk']:.0f} steps."
        ),
    )


def _mean(results: list[tuple[float, int]], place: int) -> float:
    return statistics.fmean(result[place] for result in results)


def _difference(one: list[float], other: list[float]) -> tuple[float, float]:
    """Mean of the paired differences and its standard error."""
    differences = [a - b for a, b in zip(one, other, strict=True)]
    if len(differences) < 2:
        return statistics.fmean(differences), math.inf
    return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def _drawn(draw: int, examples: int) -> tuple[Examples, Examples]:
    """Examples to learn from and examples to be asked for; no context occurs twice."""
    characters = small_text.code()[0]
    generator = np.random.default_rng(draw)
    windows = np.empty((2 * (examples + UNSEEN), BEFORE + 1), np.int64)
    places = generator.choice(characters.token_count - BEFORE, len(windows), replace=False)
    for window, place in zip(windows, places.tolist(), strict=True):
        characters.read_into(place, window)
    _, first = np.unique(windows[:, :BEFORE], axis=0, return_index=True)
    kept = torch.from_numpy(windows[np.sort(first)][: examples + UNSEEN])
    inputs, targets = kept[:, :BEFORE], kept[:, BEFORE]
    return (inputs[:examples], targets[:examples]), (inputs[examples:], targets[examples:])


def _rounds(seen: Examples, unseen: Examples, rate: float, draw: int) -> dict[str, tuple[float, int]]:
    """(accuracy on unseen examples, steps of the second round) of every arm."""
    half = len(seen[0]) // 2
    warm = _network(draw)
    _fit(warm, (seen[0][:half], seen[1][:half]), rate, draw)
    fresh, shrunk = _network(draw + 10_000), copy.deepcopy(warm)
    catalog.resolve("warm_start")().apply(shrunk, fresh)
    found = {}
    for arm, model in zip(ARMS, (fresh, warm, shrunk), strict=True):
        steps = _fit(model, seen, rate, draw + 1)
        with torch.no_grad():
            right = (model(unseen[0]).argmax(-1) == unseen[1]).float().mean()
        found[arm] = (float(right), steps)
    return found


def _network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Embedding(CHARACTERS, 12),
            nn.Flatten(-2),
            nn.Linear(12 * BEFORE, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, CHARACTERS),
        )


def _fit(model: nn.Module, examples: Examples, rate: float, seed: int) -> int:
    """Train with Adam until the examples are learnt; returns the steps."""
    inputs, targets = examples
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    steps = 0
    for _ in range(EPOCHS):
        right = 0
        for rows in torch.randperm(len(inputs), generator=generator).split(BATCH):
            logits = model(inputs[rows])
            right += int((logits.argmax(-1) == targets[rows]).sum())
            functional.cross_entropy(logits, targets[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        if right >= ENOUGH * len(inputs):
            break
    return steps
