"""Which size: every rung with what the budget buys of it, and the one of least predicted loss.

A time budget buys fewer tokens of a larger model, and how many is measured for the sizes near the optimum. Budgets in
FLOPs know the price of every size. Budgets in steps, tokens and epochs fix the tokens and no price, so that there the
size is the one that the law pairs with these tokens at least compute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from thalweg.errors import MachineError
from thalweg.planner import assumptions, rules
from thalweg.planner.layout import Layout, check_corpus, fits, lay_out, needed_bytes
from thalweg.planner.rules import AS_SAID, Forecast
from thalweg.planner.situation import Situation
from thalweg.planner.sizes import Size, sizes
from thalweg.planner.speeds import Speeds

# Rounds of "tokens decide the layout, the layout decides the rate, the rate decides the tokens".
_ROUNDS = 3


@dataclass(frozen=True)
class Candidate:
    """A size, how it would be trained, and what the budget buys.

    Attributes:
        rate: tokens a second, all ranks together. measured: whether that was timed, not carried over.
        tokens: that the budget pays for. epochs: passes over the training split.
        forecast: of held-out bits a byte.
        merit: what sizes are compared by, lower is better: the forecast for windows of one length and batches that are
            not rounded. The law knows nothing of windows and batches, and a larger budget must not choose a smaller
            model because of their steps.
    """

    size: Size
    layout: Layout
    rate: float
    tokens: float
    epochs: float
    forecast: Forecast
    merit: float
    measured: bool

    def row(self) -> dict[str, object]:
        """As one of the plan's `candidates`."""
        return {
            "model": self.size.name,
            "parameters": self.size.parameters,
            "tokens_per_second": self.rate,
            "tokens": self.tokens,
            "epochs": self.epochs,
            "predicted_bits_per_byte": self.forecast.value,
            "low": self.forecast.low,
            "high": self.forecast.high,
            "measured": self.measured,
        }


class Candidates:
    """The sizes that a recipe leaves open, on one machine, under one budget."""

    def __init__(self, situation: Situation, speeds: Speeds) -> None:
        self.situation, self.speeds = situation, speeds
        check_corpus(situation)
        everything = sizes(situation.recipe.model, situation.store)
        self.sizes = [size for size in everything if fits(situation, size)]
        self.left_out = [size for size in everything if size not in self.sizes]
        if not self.sizes:
            least = everything[0]
            window = self.situation.recipe.data.context or rules.constants()["context"]["smallest"]
            rows = self.situation.recipe.training.micro_batch or 1
            needed = needed_bytes(situation, least, window * rows)
            raise MachineError(
                f"no size fits: {least.name} needs about {gibibytes(needed)} a rank, there are "
                f"{gibibytes(situation.memory)}",
                where="--memory",
                fix="Allow more memory with --memory, or choose a smaller model, context or micro_batch.",
            )

    def choose(self) -> tuple[Candidate, list[Candidate], str]:
        """The best size, all candidates in the order of the ladder, and the reason."""
        self._refine()
        table = self.table()
        best = self.best(table)
        return best, table, self._reason(best)

    def table(self) -> list[Candidate]:
        """Every size with what is known by now."""
        return [self.candidate(size) for size in self.sizes]

    def candidate(self, size: Size) -> Candidate:
        """One size: the layout follows the tokens, and the tokens what the layout costs."""
        unique = self.situation.store.train.token_count
        layout = lay_out(self.situation, size, self._nominal_tokens(size))
        for _ in range(_ROUNDS):
            rate = self.speeds.rate(size, layout.context.value, layout.rank_tokens)
            tokens = self._tokens(size, layout, rate)
            if self.situation.recipe.budget.unit == "steps":
                break  # the tokens follow from the layout here, not the other way round
            layout = lay_out(self.situation, size, tokens)
        rate = self.speeds.rate(size, layout.context.value, layout.rank_tokens)
        tokens = self._tokens(size, layout, rate)
        forecast, merit = Forecast(None, None, None), math.inf
        if not size.own:
            laws = self.situation.laws
            forecast = rules.predicted_bits_per_byte(size.law_parameters, max(tokens, 1.0), unique, laws)
            nominal = max(self._nominal_tokens(size), 1.0)
            merit = rules.predicted_bits_per_byte(size.law_parameters, nominal, unique, laws).value or math.inf
        measured = size.name in self.speeds.known
        return Candidate(size, layout, rate, tokens, tokens / unique, forecast, merit, measured)

    def _nominal_tokens(self, size: Size) -> float:
        """Tokens that the budget pays for at the shortest windows and batches that are not rounded."""
        budget, here = self.situation.recipe.budget, self.situation
        context = here.recipe.data.context or rules.constants()["context"]["smallest"]
        said = (here.recipe.training.batch_size or 0) * context
        if budget.unit != "seconds":
            return {
                "steps": budget.amount * (said or rules.constants()["batch"]["tokens"]),
                "tokens": budget.amount,
                "epochs": budget.amount * here.store.train.token_count,
                "flops": budget.amount / size.flops(context),
            }[budget.unit]
        tokens = self.seconds * assumptions.EFFICIENCY[here.device.type] * here.peak * here.ranks / size.flops(context)
        for _ in range(_ROUNDS):
            batch = said or max(rules.batch_tokens(tokens), context)
            tokens = self._training_seconds * self.speeds.rate(size, context, batch / here.ranks)
        return tokens

    def _tokens(self, size: Size, layout: Layout, rate: float) -> float:
        """Tokens that the budget pays for."""
        budget = self.situation.recipe.budget
        context = layout.context.value
        windows = (self.situation.store.train.token_count - 1) // context
        return {
            "steps": budget.amount * layout.tokens,
            "tokens": budget.amount,
            "epochs": budget.amount * windows * context,
            "flops": budget.amount / size.flops(context),
            "seconds": self._training_seconds * rate,
        }[budget.unit]

    @property
    def _training_seconds(self) -> float:
        return self.seconds * (1 - assumptions.EVALUATION_SHARE)

    @property
    def seconds(self) -> float:
        """Of a time budget, what is left after measuring."""
        return max(self.situation.seconds - self.speeds.spent, 0.0) if self.situation.timed else 0.0

    # -- measuring ------------------------------------------------------------------------------------------------

    def _refine(self) -> None:
        """Time the best size, then its neighbours, until the best one's are known or the allowance is used up."""
        for _ in range(assumptions.MEASURED_SIZES if self.situation.timed else 1):
            table = self.table()
            best = self.best(table)
            room = self._allowance(best) - self.speeds.spent
            for size, layout in self._worth_measuring(table, table.index(best)):
                # What the machine makes of a model is known only after the first.
                safety = 1 if self.speeds.known else assumptions.UNKNOWN_MACHINE
                if self.speeds.cost(size, layout) <= room / safety:
                    self.speeds.measure(size, layout, room)
                    break
            else:
                return

    def _allowance(self, best: Candidate) -> float:
        """Seconds that may go into measuring: a share of what training takes."""
        seconds = self.situation.seconds if self.situation.timed else best.tokens / best.rate
        return assumptions.MEASURING_SHARE * seconds

    def _worth_measuring(self, table: list[Candidate], best: int) -> list[tuple[Size, Layout]]:
        """Unmeasured sizes in the order in which to try: the best, its neighbours, then ever smaller ones.

        Where even the best is too dear to time, a smaller size at least tells how well the machine is used, in the end
        the smallest with ever fewer windows a pass.
        """
        order = [best]
        if self.situation.timed:
            near = [index for index in (best + 1, best - 1) if 0 <= index < len(table)]
            order += sorted(near, key=lambda index: table[index].merit)
            order += [] if self.speeds.known else range(best - 2, -1, -1)
        # All with the best one's windows: the efficiency of another length would not compare.
        base = table[best].layout
        trials = []
        for candidate in (table[index] for index in order if not table[index].measured):
            micro = min(base.micro, max(candidate.layout.micro_tokens // base.context.value, 1))
            trials.append((candidate.size, replace(base, micro=micro)))
        if self.situation.timed and not self.speeds.known:
            size, layout = min(trials, key=lambda trial: trial[0].stored)
            trials += [
                (size, replace(layout, micro=layout.micro >> halvings))
                for halvings in range(1, layout.micro.bit_length())
            ]
        return trials

    # -- the choice -----------------------------------------------------------------------------------------------

    def best(self, table: list[Candidate]) -> Candidate:
        """The candidate to take."""
        if len(table) == 1:
            return table[0]
        if self.situation.recipe.budget.unit in ("seconds", "flops"):
            return min(table, key=lambda candidate: candidate.merit)
        unique = self.situation.store.train.token_count

        def distance(candidate: Candidate) -> float:
            paired = rules.paired_parameters(max(candidate.tokens, 1.0), unique, self.situation.laws)
            return abs(math.log(candidate.size.law_parameters / paired))

        return min(table, key=distance)

    def _reason(self, chosen: Candidate) -> str:
        recipe = self.situation.recipe
        if recipe.model != "auto":
            return AS_SAID
        if recipe.budget.unit in ("seconds", "flops"):
            reason = "lowest predicted loss: larger sees too few tokens, smaller can hold too little"
        else:
            reason = f"a budget in {recipe.budget.unit} fixes the tokens: the law pairs this size with them"
        if self.left_out and (self.situation.memory_said or chosen.size == self.sizes[-1]):
            least = self.left_out[0].name
            reason += f"; sizes from {least} up do not fit {gibibytes(self.situation.memory)}"
        return reason


def gibibytes(amount: float) -> str:
    """Bytes in words."""
    return f"{amount / 2**30:.1f} GiB"
