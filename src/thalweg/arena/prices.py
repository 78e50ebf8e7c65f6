"""What a proxy costs, in the unit of the budget: seconds of a slot at the speeds measured here, or FLOPs."""

from __future__ import annotations

from thalweg.arena import grid as grids
from thalweg.arena.grid import Grid, Proxy
from thalweg.arena.local import Local
from thalweg.arena.proxies import OVERHEAD, Pace, Proxies
from thalweg.budget import Budget
from thalweg.errors import ArenaError
from thalweg.planner.assumptions import EFFICIENCY
from thalweg.planner.sizes import Size

# Held-out tokens that runs are judged on. Rates are compared with each other, and few tokens do. A law's level is that
# of the documents it was measured on, and the head of a corpus is not like the whole: on the embedded one the first 34k
# held-out tokens cost 10% more bits than all 168k. Beyond so many, as many as the shortest run trains on.
SWEPT, EVALUATED = 1 << 14, 1 << 18


class Prices:
    """Prices of proxies of the sizes that fit this machine.

    Args:
        named: sizes to choose from; None for the ladder.
        least_steps: of a run.

    Attributes:
        sizes: offered, growing. parameters: N of each, as the law counts.
        least: tokens of the least steps. context: tokens a window of such a run.
        pace: what runs took against their price so far.
    """

    def __init__(
        self, budget: Budget, proxies: Proxies, execution: Local, named: list[str] | None, least_steps: int
    ) -> None:
        self.timed = budget.unit == "seconds"
        self.proxies, self.execution = proxies, execution
        self.sizes = proxies.sizes(named)
        self.parameters = [float(size.law_parameters) for size in self.sizes]
        self.pace = Pace(float("inf"))
        self.least = least_steps * 1000
        for _ in range(4):  # the batch follows the tokens, and the tokens of so many steps follow the batch
            chosen = proxies.plan(self.sizes[0].name, self.least)["chosen"]
            self.context = chosen["context"]
            self.least = least_steps * chosen["batch_size"] * self.context

    @property
    def slots(self) -> int:
        """Runs that spend the budget at a time: FLOPs are counted one run after the other."""
        return self.execution.slots if self.timed else 1

    def evaluated(self, base: int | None) -> int:
        """Held-out tokens that runs of a grid of this base are judged on, all on the same; None for the sweep."""
        return min(self.proxies.store.held_out.token_count, SWEPT if base is None else max(EVALUATED, base))

    def expected(self, proxy: Proxy, base: int | None) -> float:
        """The price at the speed of the probes."""
        size = self.sizes[proxy.size]
        if not self.timed:
            return size.flops(self.context) * proxy.tokens
        # A forward pass is a third of a training pass.
        return (proxy.tokens + self.evaluated(base) / 3) / self._speed(size) + OVERHEAD

    def price(self, proxy: Proxy, base: int | None) -> float:
        """The price at the pace of the runs so far."""
        return (self.pace.factor if self.timed else 1.0) * self.expected(proxy, base)

    def smallest(self) -> Grid:
        """The least grid that is sensible, at the present prices. Raises ArenaError where too few sizes are offered."""
        found = grids.smallest(self.parameters, self.price, self.slots, self.least)
        if found is None:
            raise ArenaError(
                f"a law needs three sizes, each {grids.SPACING:g} times the one before; there are "
                f"{', '.join(size.name for size in self.sizes) or 'none'}",
                where="--sizes",
                fix="Leave --sizes out, or name more.",
            )
        return found

    def time_sizes(self, places: set[int]) -> bool:
        """Time these sizes where time is what is spent; whether there was one that was not timed before."""
        known = self.proxies.known()
        unknown = [self.sizes[place] for place in sorted(places) if self.sizes[place].name not in known]
        for size in unknown if self.timed else ():
            self.proxies.rate(self.execution, size, self.least)
        return self.timed and bool(unknown)

    def _speed(self, size: Size) -> float:
        """Tokens a second: timed, or carried over from the size timed that is nearest, or assumed."""
        known = self.proxies.known()
        if size.name in known:
            return known[size.name]
        timed, flops = [one for one in self.sizes if one.name in known], size.flops(self.context)
        if not timed:
            return EFFICIENCY["cpu"] * self.proxies.peak_flops() / self.execution.slots / flops
        nearest = min(timed, key=lambda one: abs(one.law_parameters / size.law_parameters - 1))
        return known[nearest.name] * nearest.flops(self.context) / flops
