"""Does a model that has finished its cosine learn a second corpus well by re-warming, re-decaying and a little replay?

Half of the recipe is the schedule, half the data, so a race of schedules on one corpus could not tell. A small
character model is trained on prose, then goes on with code for half as many steps:

    stay        at the last rate                     rewarm      back to the peak, no decay
    redecay     re-warmed and re-decayed, 0%, 5%, 25% and 50% of every batch prose
    union       from nothing on prose and code together, for as many steps as both phases

and every model is asked for both texts. The peak rate is the best of three for the prose alone, and stays.
"""

from __future__ import annotations

import copy

from torch import nn

from thalweg import catalog
from thalweg.arena.claims import small_text
from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.small_text import BATCH, CONTEXT
from thalweg.data.replay import ReplaySampler

FIRST, SECOND, FLOOR = 1500, 750, 0.1
PEAKS = (0.005, 0.01, 0.02)
RATES = (0.0, 0.05, 0.25, 0.5)
# The source's 5% replay ends 1% above training on everything from nothing, in average loss.
CLOSE = 0.02


def rewarming(seed: int = 0, first: int = FIRST, second: int = SECOND) -> Finding:
    """Held-out nats a character on (prose, code) of all models."""
    texts = small_text.prose(), small_text.code()
    old, new = texts[0][0], texts[1][0]
    constant, cosine, rewarm = (catalog.resolve(name) for name in ("constant", "cosine", "rewarm_redecay"))

    def losses(model: nn.Module) -> list[float]:
        return [small_text.held_out(model, held) for _, held in texts]

    def phase(model: nn.Module, rate: float, schedule: object, peak: float) -> list[float]:
        sampler = ReplaySampler(new, old, CONTEXT, BATCH, seed + 1, rate)
        return losses(small_text.train(copy.deepcopy(model), sampler, schedule, peak, second))

    def begin(peak: float) -> nn.Module:
        sampler = ReplaySampler(old, new, CONTEXT, BATCH, seed, 0.0)
        return small_text.train(small_text.network(seed), sampler, cosine(floor=FLOOR), peak, first)

    models = {peak: begin(peak) for peak in PEAKS}
    peak = min(PEAKS, key=lambda peak: losses(models[peak])[0])
    begun = models[peak]
    found = {
        "prose only": losses(begun),
        "stay": phase(begun, 0.0, constant(warmup=0.0), FLOOR * peak),
        "rewarm": phase(begun, 0.0, rewarm(floor=1.0), peak),
    }
    found |= {f"redecay {rate:.0%}": phase(begun, rate, rewarm(start=FLOOR, floor=FLOOR), peak) for rate in RATES}
    # The shares that prose and code have in both phases together.
    union = ReplaySampler(new, old, CONTEXT, BATCH, seed, first / (first + second))
    found["union"] = losses(
        small_text.train(small_text.network(seed), union, cosine(floor=FLOOR), peak, first + second)
    )
    return _judged({name: [round(loss, 4) for loss in pair] for name, pair in found.items()}, peak)


def _judged(found: dict[str, list[float]], peak: float) -> Finding:
    adapts = found["redecay 0%"][1] < found["stay"][1]
    forgets = [found[f"redecay {rate:.0%}"][0] - found["prose only"][0] for rate in RATES]
    averages = {name: sum(pair) / 2 for name, pair in found.items()}
    best = min((f"redecay {rate:.0%}" for rate in RATES), key=averages.__getitem__)
    behind = averages[best] / averages["union"] - 1.0
    remembers = forgets[1] < 0.5 * forgets[0]
    return Finding(
        numbers={
            "peak rate": peak,
            **{f"{name}, prose and code": pair for name, pair in found.items()},
            "forgetting by replay rate": [round(value, 4) for value in forgets],
            "best": best,
            "best behind union": round(behind, 4),
        },
        holds=adapts and remembers and behind <= CLOSE,
        sentence=(
            f"On code, staying at the last rate ends at {found['stay'][1]:.3f} nats a character, re-warming and "
            f"re-decaying at {found['redecay 0%'][1]:.3f}; 5% replay lowers what is forgotten of prose from "
            f"{forgets[0]:.3f} to {forgets[1]:.3f}; {best.removeprefix('redecay ')} replay ends {behind:+.1%} from the "
            "average loss of training on both from nothing, at a third of its steps."
        ),
    )
