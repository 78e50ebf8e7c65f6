"""Small runs that stand for larger ones: planned, priced, and performed until a deadline.

What a run costs is known beforehand from a probe of its size with every slot at work, and better with every run that
ends. Cheap runs come first, so that the pace is known before a dear one begins; then the dearest first, so that the
slots end together. A run that would end after the deadline is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from thalweg.arena.board import Board, Place
from thalweg.arena.grid import together
from thalweg.arena.local import Local
from thalweg.arena.measured import Outcome
from thalweg.arena.unit import Unit
from thalweg.data import TokenStore
from thalweg.laws.corpus_laws import BUILT_IN
from thalweg.models.ladder import LADDER, Shape, nearest
from thalweg.planner.layout import fits
from thalweg.planner.measure import Speed, speed
from thalweg.planner.plan import Planner
from thalweg.planner.profile import profile
from thalweg.planner.sizes import Size, rung
from thalweg.recipe import Recipe, parse_arm, put
from thalweg.sessions.training_data import open_store
from thalweg.training import process
from thalweg.training.parallel import Parallel

Key = TypeVar("Key", bound=Hashable)

# Of a run besides its steps and its evaluation: the fork, the model, the files. See benchmarks/README.md, "Comparing".
OVERHEAD = 0.5
PROBE_SECONDS = 1.0
# Runs that must have ended before their pace is believed.
_PACED = 2


@dataclass
class Proxies:
    """Makes the runs of one arm on one corpus.

    Attributes:
        corpus, arm, settings: as for a comparison.
        root: folder for the runs.
    """

    corpus: str
    arm: str
    settings: dict[str, Any]
    root: Path
    store: TokenStore = field(init=False)
    _plans: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict, init=False)
    _rates: dict[str, float] = field(default_factory=dict, init=False)

    def open(self, quiet: bool) -> None:
        """Open the token store, building it where there is none, and profile the machine."""
        recipe = self.recipe(LADDER[0].name, 1)
        self._parallel = Parallel(recipe.training.device)
        process.keep_freed_memory()
        self.store = open_store(recipe, self._parallel, progress=not quiet)
        self._machine = profile()
        process.set_threads(self._machine.threads)

    def recipe(self, model: str, tokens: int, extra: dict[str, Any] | None = None) -> Recipe:
        """A recipe of a proxy, with dotted `extra` keys."""
        fields: dict[str, Any] = {"budget": f"{tokens} tokens", "model": model, "laws": BUILT_IN}
        fields["data"] = {"corpus": self.corpus}
        fixed = {"training.compile": "off", "training.keep": 1}
        for key, value in {**fixed, **self.settings, **(extra or {})}.items():
            put(fields, key, value)
        return Recipe.validated({**fields, **(parse_arm(self.arm) if self.arm else {})}, where=f"arm {self.arm}")

    def sizes(self, named: list[str] | None) -> list[Size]:
        """The sizes offered: those named, or all of the ladder that fit the memory."""
        shapes: list[Shape] = (
            sorted({nearest(name) for name in named}, key=lambda shape: shape.parameters) if named else list(LADDER)
        )
        here = self._planner(self.recipe(shapes[0].name, 1)).here
        return [size for size in (rung(shape, self.store.vocab_size) for shape in shapes) if fits(here, size)]

    def peak_flops(self) -> float:
        """FLOP/s of the machine's matrix products in the precision that will be used."""
        return self._planner(self.recipe(LADDER[0].name, 1)).here.peak

    def plan(self, model: str, tokens: int) -> dict[str, Any]:
        """The plan of a proxy; each is made once."""
        if (model, tokens) not in self._plans:
            self._plans[model, tokens] = self._planner(self.recipe(model, tokens)).plan()
        return self._plans[model, tokens]

    def _planner(self, recipe: Recipe) -> Planner:
        def known(size: Size, recipe: Recipe, *, micro_batch: int, context: int, **_: Any) -> Speed:
            # What is counted needs no clock; this is for the forecast of a run's time only.
            seconds = micro_batch * context / self._rates.get(size.name, 1e4)
            return Speed(seconds, 0.0, seconds, 0.0)

        return Planner(recipe, self.store, self._machine, device=self._parallel.device, measure=known)

    def unit(self, model: str, tokens: int, peak_lr: float, evaluated: int) -> Unit:
        """One run, evaluated once, at its end, on the first `evaluated` held-out tokens."""
        plan = self.plan(model, tokens)
        chosen = {
            **plan["chosen"],
            "peak_lr": peak_lr,
            "evaluations": 1,
            "evaluation_tokens": evaluated,
            "evaluation_seconds": evaluated / (3 * plan["chosen"]["tokens_per_second"]),
        }
        recipe = self.recipe(
            model,
            tokens,
            {
                "data.context": chosen["context"],
                "training.batch_size": chosen["batch_size"],
                "training.micro_batch": chosen["micro_batch"],
                "training.precision": chosen["precision"],
                "training.peak_lr": peak_lr,
                "training.weight_decay": chosen["weight_decay"],
            },
        )
        return Unit(recipe, {**plan, "chosen": chosen}, self.root)

    def rate(self, execution: Local, size: Size, tokens: int) -> float:
        """Training tokens a second of one run of this size with all slots at work; measured once."""
        if size.name not in self._rates:
            recipe, chosen = self.recipe(size.name, tokens), self.plan(size.name, tokens)["chosen"]
            if self._parallel.device.type == "cpu":
                job = {"recipe": recipe.toml(), "chosen": chosen}
                self._rates[size.name] = execution.probe(job, PROBE_SECONDS)
            else:  # a run has a device to itself, and this process may use one of them
                shape = {name: chosen[name] for name in ("context", "micro_batch", "precision")}
                found = speed(size, recipe, **shape, device=self._parallel.device)
                passes = -(-chosen["batch_size"] // chosen["micro_batch"])
                seconds = passes * found.micro_batch + found.optimizer
                self._rates[size.name] = chosen["batch_size"] * chosen["context"] / seconds
        return self._rates[size.name]

    def known(self) -> dict[str, float]:
        """Tokens a second of the sizes that were timed."""
        return dict(self._rates)


@dataclass
class Pace:
    """How long runs take against what was expected, and when everything must be done.

    Attributes:
        deadline: on `time.monotonic()`; infinite where time is not what is spent.
        expected, taken: seconds of the runs that have ended.
    """

    deadline: float
    expected: float = 0.0
    taken: float = 0.0
    ended: int = 0

    @property
    def factor(self) -> float:
        """Seconds a run takes for each that was expected."""
        return self.taken / self.expected if self.ended >= _PACED else 1.0

    def learn(self, expected: float, taken: float) -> None:
        """A run has ended."""
        self.expected, self.taken, self.ended = self.expected + expected, self.taken + taken, self.ended + 1

    def too_late(self, costs: list[float], busy: list[float], slots: int) -> bool:
        """Whether runs of these costs would end after the deadline, started while `busy` seconds are left of others."""
        return time.monotonic() + together([self.factor * cost for cost in costs], slots, busy) > self.deadline


def perform(
    units: dict[Key, Unit],
    costs: dict[Key, float],
    execution: Local,
    pace: Pace,
    board: Board,
    place: Callable[[Key], Place],
) -> tuple[dict[Key, Outcome], list[Key]]:
    """Run units, or find them finished.

    Args:
        units, costs: by key, the expected seconds of each.
        place: of a key on the board.

    Returns:
        What became of each, and the keys left out for want of time.
    """
    outcomes: dict[Key, Outcome] = {}
    planned = {key: unit.on(execution.threads, execution.name) for key, unit in units.items()}
    for key, unit in planned.items():
        state = unit.state()
        if state in ("finished", "stopped"):
            outcomes[key] = Outcome(unit, {"status": state}, reused=True)
            board.finished(place(key), "seeds", place(key)[1], outcomes[key])
    growing = sorted((key for key in units if key not in outcomes), key=lambda key: costs[key])
    waiting = growing[: len(growing) // 2] + growing[len(growing) // 2 :][::-1]
    work: dict[Future[dict[str, Any]], tuple[Key, float]] = {}
    left_out: list[Key] = []
    while waiting or work:
        while waiting and len(work) < execution.slots:
            now = time.monotonic()
            busy = [max(began + pace.factor * costs[key] - now, 0.0) for key, began in work.values()]
            while waiting and pace.too_late([costs[key] for key in waiting], busy, execution.slots):
                left_out.append(max(waiting, key=lambda key: costs[key]))
                waiting.remove(left_out[-1])
            if not waiting:
                break
            key = waiting.pop(0)
            board.submitted(place(key), planned[key])
            work[execution.submit(planned[key])] = (key, now)
        for future in wait(work, return_when=FIRST_COMPLETED).done if work else ():
            key, began = work.pop(future)
            outcomes[key] = Outcome(planned[key], future.result(), reused=False)
            pace.learn(costs[key], time.monotonic() - began)
            board.finished(place(key), "seeds", place(key)[1], outcomes[key])
    return outcomes, left_out
