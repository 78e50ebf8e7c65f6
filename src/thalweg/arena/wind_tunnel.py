"""A wind tunnel: what small runs tell about a corpus, so that a large run can be planned.

    rates    a third of the budget: a few peak rates at two or three widths -> the rule of the peak rate
    law      the rest: a grid of sizes and numbers of tokens, each run at the rule's rate and annealed to its own end
             -> L(N, D) = E + A / N^alpha + B / D^beta

The grid is as large as the budget pays for at the speeds measured here. What was decided is kept in `tunnel.json`, and
finished runs are found by their hash, so that a tunnel that was stopped goes on where it was when it is said again.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thalweg import catalog
from thalweg.arena import grid as grids
from thalweg.arena.board import Board
from thalweg.arena.grid import Grid, Proxy, Sweep
from thalweg.arena.local import Local
from thalweg.arena.measured import Outcome, run_of
from thalweg.arena.prices import Prices
from thalweg.arena.proxies import Proxies, perform
from thalweg.arena.rate_sweep import rounded, sweep_rates
from thalweg.arena.tunnel_memory import Memory
from thalweg.arena.unit import Unit
from thalweg.budget import Budget
from thalweg.cache import cache_folder
from thalweg.errors import ArenaError, BudgetError
from thalweg.laws import corpus_fit
from thalweg.laws.corpus_laws import Laws
from thalweg.laws.rate_rule import RateRule
from thalweg.laws.repetition import effective_tokens
from thalweg.planner import rules, which_laws
from thalweg.reports import law_plots, pictures
from thalweg.runs import write_text

LEAST_STEPS = 100
# From so many times the least steps on, more runs are worth more than longer ones: at 240 steps larger models still lag
# behind smaller ones in a way that no law of this form describes (benchmarks/README.md, "The planner's constants").
ENOUGH = 4
# Passes over the corpus of the longest run: up to about four, a repeated token is nearly as good as a new one.
MOST_EPOCHS = 4
SWEEP_SHARE = 1 / 3
# Kept for the fit and the figure: seconds, and a share of the budget for runs that end late.
CLOSING, SLACK = 4.0, 0.02
DECIDED = ("budget", "model", "laws", "seed", "data.corpus", "training.peak_lr", "training.compile", "training.keep")

Points = list[tuple[float, float, float]]


def wind_tunnel(
    corpus: str = "stdlib",
    budget: str = "20min",
    *,
    arm: str = "",
    settings: dict[str, Any] | None = None,
    sizes: Sequence[str] | None = None,
    least_steps: int = LEAST_STEPS,
    jobs: int | None = None,
    out: str | Path = "wind-tunnel",
    runs: str | Path = "runs/wind-tunnel",
    started: float | None = None,
    quiet: bool = False,
) -> Laws:
    """Measure the laws of a corpus and write `<out>/laws.json` and `<out>/laws.svg`; "auto" finds them from then on.

    Args:
        corpus, arm, settings: what the proxies train on and with, as for `compare`.
        budget: seconds of the whole, or FLOPs of all runs.
        sizes: to choose from, at least three; the ladder when left out.
        least_steps: of a run.
        jobs: runs at a time; None measures what is fastest.
        out: folder of the result. runs: folder in which finished runs are kept and found.
        started: `time.monotonic()` when the budget's time began; now when left out.
        quiet: nothing on standard error.

    Raises:
        BudgetError: a budget in other units, or one too small for the smallest sensible grid: it says what is needed.
        UserError: an arm, a corpus or a folder that cannot be used.
    """
    for key in settings or {}:
        if key in DECIDED:
            raise ArenaError(f"{key} is not for --set here", where="--set", fix="The wind tunnel decides it.")
    if least_steps < 1:
        raise ArenaError(f"runs of {least_steps} steps are none", where="--least-steps", fix=f"{LEAST_STEPS} is usual.")
    spendable = Budget.parse(budget)
    if spendable.unit not in ("seconds", "flops"):
        raise BudgetError(
            f"a wind tunnel cannot spend {spendable.unit}: its runs differ in size",
            where="--budget",
            fix='Give time or FLOPs: "20min", "1e15 flops".',
        )
    proxies = Proxies(corpus, arm, settings or {}, Path(runs))
    proxies.recipe("0.2M", 1)  # mistakes show before the corpus is read
    execution = Local(cache_folder(), jobs)
    tunnel = Tunnel(spendable, proxies, execution, Path(out), quiet, started or time.monotonic())
    try:
        return tunnel.run(list(sizes) if sizes else None, least_steps)
    finally:
        execution.close()
        if tunnel.memory:
            tunnel.memory.save()


class Tunnel:
    """One wind tunnel; see `wind_tunnel` for the arguments."""

    def __init__(
        self, budget: Budget, proxies: Proxies, execution: Local, out: Path, quiet: bool, started: float
    ) -> None:
        self.budget, self.proxies, self.execution = budget, proxies, execution
        self.out, self.quiet, self.started = out, quiet, started
        self.memory: Memory | None = None
        self.flops = 0.0

    def run(self, named: list[str] | None, least_steps: int) -> Laws:
        """All of it."""
        self.proxies.open(self.quiet)
        self.prices = Prices(self.budget, self.proxies, self.execution, named, least_steps)
        small = grids.smallest(self.prices.parameters, lambda *_: 0.0, 1, self.prices.least)
        units = [self._unit(proxy, 0.01, small.base) for proxy in small.proxies] if small else []
        self.execution.prepare(units or [self._unit(Proxy(0, self.prices.least), 0.01, self.prices.least)])
        self.memory = Memory(self.out, self._same(named, least_steps), self.started)
        decided = self.memory.decided
        if "sweep" not in decided:
            self.memory.decide(sweep=asdict(self._sweep()))
        rule = self._rates(Sweep(**{**decided["sweep"], "sizes": tuple(decided["sweep"]["sizes"])}))
        if "grid" not in decided:
            grid = self._grid(1.0)
            self.memory.decide(grid=[asdict(proxy) for proxy in grid.proxies], base=grid.base)
        points = self._points(rule, [Proxy(**said) for said in decided["grid"]], decided["base"])
        return self._written(rule, points)

    def _same(self, named: list[str] | None, least_steps: int) -> dict[str, Any]:
        """What makes another call the same tunnel."""
        return {
            "recipe": self.proxies.recipe(self._size(0), 1).toml(),
            "budget": str(self.budget),
            "data": list(which_laws.identity(self.proxies.store)),
            "sizes": named,
            "least_steps": least_steps,
            "division": [self.execution.slots, self.execution.threads],
        }

    def left(self) -> float:
        """Of the budget, in its unit, without what closing takes."""
        if not self.prices.timed:
            return self.budget.amount - self.flops
        spent = self.memory.spent if self.memory else time.monotonic() - self.started
        return self.budget.amount * (1 - SLACK) - CLOSING - spent

    # -- what to run ----------------------------------------------------------------------------------------------

    def _sweep(self) -> Sweep:
        """The runs for the rates: a third of the budget, or as little as leaves the smallest grid its share."""
        grid, prices = self._grid(1 - SWEEP_SHARE), self.prices
        rungs = sorted({proxy.size for proxy in grid.proxies})
        tokens = {"least": prices.least, "enough": ENOUGH * prices.least, "most": ENOUGH * prices.least}
        sweep = grids.choose_sweep(rungs, prices.price, SWEEP_SHARE * self.left(), prices.slots, **tokens)
        small = prices.smallest()
        if sweep.cost + small.cost > self.left():
            rungs = sorted({proxy.size for proxy in small.proxies})
            sweep = grids.choose_sweep(rungs, prices.price, 0.0, prices.slots, **tokens)
        missing = sweep.cost + small.cost - self.left()
        if missing > 0:
            needed = 1.1 * (self.budget.amount + missing)
            words = f"{needed:.0f}s" if prices.timed else f"{needed:.1e} flops"
            raise BudgetError(
                f"the smallest sensible wind tunnel ({len(sweep.sizes) * sweep.rates} runs for the rate, "
                f"{len(small.proxies)} for the law) needs about {words} on this machine",
                where=f"--budget {self.budget}",
                fix=f"Give --budget {words!r}, or fewer --least-steps.",
            )
        return sweep

    def _grid(self, share: float) -> Grid:
        """The grid for a share of what is left; its sizes are timed first where time is what is spent."""
        prices, law = self.prices, which_laws.built_in().law
        most = max(MOST_EPOCHS * self.proxies.store.train.token_count, 4 * prices.least)
        while True:
            found = grids.choose(
                prices.parameters,
                prices.price,
                share * self.left(),
                prices.slots,
                least=prices.least,
                enough=ENOUGH * prices.least,
                paired=lambda n: (law.beta * law.B / (law.alpha * law.A) * n**law.alpha) ** (1 / law.beta),
                most=most,
            )
            found = found or prices.smallest()
            if not prices.time_sizes({proxy.size for proxy in found.proxies}):
                return found

    # -- running ----------------------------------------------------------------------------------------------------

    def _rates(self, sweep: Sweep) -> RateRule:
        """Run the sweep; its extension waits for no time that the law needs."""
        ends = time.monotonic() + sweep.cost

        def performed(keys: list[tuple[int, float]]) -> dict[tuple[int, float], float | None]:
            units = {(size, rate): self._unit(Proxy(size, sweep.tokens), rate, None) for size, rate in keys}
            costs = {key: self.prices.expected(Proxy(key[0], sweep.tokens), None) for key in keys}
            found, _ = self._performed(units, costs, lambda key: f"{self._size(key[0])} at rate {key[1]:g}")
            self.flops += 0.0 if self.prices.timed else sum(costs[key] for key in found)
            self.prices.pace.deadline = max(ends, time.monotonic()) + CLOSING if self.prices.timed else float("inf")
            return {key: run_of(outcome)["bits_per_byte"] for key, outcome in found.items()}

        widths = {size: self.prices.sizes[size].width for size in sweep.sizes}
        return sweep_rates(sweep, widths, rules.card_rule(catalog.lookup(self._optimizer)), performed)

    def _points(self, rule: RateRule, proxies: list[Proxy], base: int) -> Points:
        """Run the grid: rows (parameters, tokens, bits a byte) of the runs that ended."""
        sizes = self.prices.sizes
        units = {one: self._unit(one, rounded(rule.at(sizes[one.size].width)), base) for one in proxies}
        costs = {proxy: self.prices.expected(proxy, base) for proxy in proxies}
        if self.prices.timed:
            self.prices.pace.deadline = time.monotonic() + self.left() + SLACK * self.budget.amount
        outcomes, late = self._performed(units, costs, self._named)
        if late:
            self._say(f"Left out for want of time: {', '.join(self._named(proxy) for proxy in late)}")
            if self.memory:
                self.memory.decide(grid=[asdict(proxy) for proxy in proxies if proxy not in late])
        points = []
        for proxy, outcome in sorted(outcomes.items(), key=lambda one: (one[0].size, one[0].tokens)):
            run = run_of(outcome)
            if run["bits_per_byte"] is None:
                self._say(f"Not in the law: {self._named(proxy)}, {run['error']}")
            else:
                points.append((self.prices.parameters[proxy.size], float(run["tokens"]), run["bits_per_byte"]))
        return points

    def _performed(
        self, units: dict[Any, Unit], costs: dict[Any, float], label: Callable[[Any], str]
    ) -> tuple[dict[Any, Outcome], list[Any]]:
        def place(key: Any) -> tuple[str, str]:
            return self.proxies.corpus, label(key)

        with Board([place(key) for key in units], {"seeds": 1}, quiet=self.quiet) as board:
            return perform(units, costs, self.execution, self.prices.pace, board, place)

    def _unit(self, proxy: Proxy, peak_lr: float, base: int | None) -> Unit:
        return self.proxies.unit(self._size(proxy.size), proxy.tokens, peak_lr, self.prices.evaluated(base))

    def _size(self, place: int) -> str:
        return self.prices.sizes[place].name

    def _named(self, proxy: Proxy) -> str:
        return f"{self._size(proxy.size)} on {proxy.tokens:,} tokens"

    @property
    def _optimizer(self) -> str:
        return self.proxies.recipe(self._size(0), 1).optimizer.name

    # -- what comes of it -------------------------------------------------------------------------------------------

    def _written(self, rule: RateRule, points: Points) -> Laws:
        """Fit the law and write everything."""
        store, proxies = self.proxies.store, self.proxies
        rows = [(n, effective_tokens(tokens, store.train.token_count), loss) for n, tokens, loss in points]
        fitted = corpus_fit.fit(rows, which_laws.built_in().law)
        content, tokenizer = which_laws.identity(store)
        laws = Laws(
            law=fitted.law,
            rates={self._optimizer: rule},
            source=f"wind tunnel of {self.budget}, {datetime.date.today()}: {self._spanned(points)}; {fitted.told}",
            arm=proxies.recipe(self._size(0), 1).arm,
            corpus=proxies.corpus,
            content_hash=content,
            tokenizer_hash=tokenizer,
            vocab_size=store.vocab_size,
            points=tuple(points),
            origin=str(self.out / "laws.json"),
        )
        write_text(self.out / "laws.json", json.dumps(laws.to_dict(), indent=1) + "\n")
        pictures.save(law_plots.chinchilla(laws.law, rows), self.out / "laws.svg")
        which_laws.keep(laws, store)
        return laws

    def _spanned(self, points: Points) -> str:
        """How many runs, of which sizes and lengths."""
        spans = []
        for values in list(zip(*points, strict=True))[:2]:
            spans.append(f"{min(values) / 1e6:.3g}M to {max(values) / 1e6:.3g}M")
        return (
            f"{len(points)} runs on {self.proxies.corpus}, {spans[0]} parameters in matrix products, {spans[1]} "
            f"tokens, vocabulary {self.proxies.store.vocab_size}"
        )

    def _say(self, sentence: str) -> None:
        if not self.quiet:
            print(sentence, file=sys.stderr, flush=True)
