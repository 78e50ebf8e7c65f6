"""A machine, a corpus and a law made up for planning, so that no test depends on a clock or on measured constants."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from thalweg.models.ladder import LADDER
from thalweg.planner import rules
from thalweg.planner.measure import Speed
from thalweg.planner.plan import Planner
from thalweg.planner.profile import MachineProfile
from thalweg.recipe import Recipe

CONSTANTS = {
    "schema": 1, "source": "made up for tests", "arm": "muon", "corpus": "made up", "content_hash": None,
    "tokenizer_hash": None, "rates": {}, "points": [], "refits": [], "errors": [],
    "law": {"E": 0.9, "A": 30.0, "B": 200.0, "alpha": 0.3, "beta": 0.35, "sigma": 0.03},
    "vocab_size": 4096,
    "batch": {"tokens": 4096, "at_tokens": 1_000_000, "exponent": 0.5},
    "context": {"smallest": 256, "growth_tokens": 40_000, "largest": 2048},
}  # fmt: skip
PEAK = 1e11


@pytest.fixture(scope="module", autouse=True)
def constants():
    """The rules read these constants; for a module, since examples of hypothesis share a fixture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "constants", lambda: CONSTANTS)
        yield CONSTANTS


def corpus(tokens: float = 1e9, vocab_size: int = 4096) -> SimpleNamespace:
    """A token store as far as planning looks at it."""
    split = SimpleNamespace(name="train", token_count=int(tokens), byte_count=int(3.5 * tokens))
    held_out = SimpleNamespace(name="held_out", token_count=max(int(tokens / 20), 2), byte_count=int(tokens / 6))
    return SimpleNamespace(
        train=split, held_out=held_out, vocab_size=vocab_size, manifest={"content": "c0ffee", "tokenizer_hash": "7ea"}
    )


def machine(**changes: object) -> MachineProfile:
    """A CPU of two cores that reaches `PEAK` FLOP/s in float32 and gains nothing from bfloat16."""
    fields = {
        "processor": "made up", "cores": 2, "threads": 2, "memory_total": 64 << 30, "memory_available": 32 << 30,
        "device": "cpu", "device_name": "made up", "device_memory": None, "float32_flops": PEAK,
        "bfloat16_flops": None, "copy_bandwidth": 1e10, "bfloat16_pays": False, "torch_version": "0",
    }  # fmt: skip
    return MachineProfile(**(fields | changes))  # type: ignore[arg-type]


class Stopwatch:
    """Stands in for `measure.speed`: every size reaches `efficiency` of `peak`, or what `slower` makes of it.

    Attributes:
        timed: names of the sizes measured, compiled ones with "+compiled".
        spent: seconds that a real measurement would have taken.
    """

    def __init__(self, efficiency=0.2, peak=PEAK, optimizer=0.0, compiling=30.0, gain=1.5, slower=None, free=False):
        self.efficiency, self.peak, self.optimizer = efficiency, peak, optimizer
        self.compiling, self.gain, self.free = compiling, gain, free
        self.slower = slower or (lambda size: 1.0)
        self.timed: list[str] = []
        self.spent = 0.0

    def __call__(self, size, recipe, *, context, micro_batch, precision, device, compiled=False, most_seconds=math.inf):
        assert self.gain or not compiled, "the compiler is broken"
        flops = size.flops(context) * context * micro_batch
        one = flops / (self.efficiency * self.peak) * self.slower(size) / (self.gain if compiled else 1)
        step = self.optimizer * size.stored
        first = one + (self.compiling if compiled else 0.0)
        spent = first + step + 2 * (one + step)
        self.timed.append(f"{size.name}+compiled" if compiled else size.name)
        self.spent += spent
        return Speed(one, step, first, 0.0 if self.free else spent)


def planner(arm="", store=None, profile=None, measure=None, ranks=1, memory=None, seconds=None, **fields):
    """A planner of a recipe written in keywords; a time budget is whole unless `seconds` says what is left."""
    recipe = Recipe.parse(arm, **fields)
    return Planner(
        recipe,
        store or corpus(),
        profile or machine(),
        device=torch.device("cpu"),
        world_size=ranks,
        seconds=recipe.budget.amount if seconds is None else seconds,
        memory=memory,
        measure=measure or Stopwatch(),
    )


@pytest.fixture(scope="session")
def made_up():
    """What the tests of this folder make their plans with."""

    def plan(*arguments, **fields):
        return planner(*arguments, **fields).plan()

    names = [shape.name for shape in LADDER]

    def rank(plan):
        """The rung that a plan has chosen, counted from the bottom of the ladder."""
        return names.index(plan["chosen"]["model"])

    return SimpleNamespace(
        planner=planner, plan=plan, corpus=corpus, machine=machine, stopwatch=Stopwatch, names=names, rank=rank
    )
