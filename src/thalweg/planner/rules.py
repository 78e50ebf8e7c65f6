"""The planner's rules: one small function a decision, each returning the value and the reason in words.

The loss and the peak rate follow laws that were measured on a corpus and are handed in; see `which_laws`. The other
constants, and the laws of the embedded corpus, come from `constants.json`; `benchmarks/calibrate.py` measures those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from thalweg.catalog import Card, lookup
from thalweg.errors import RecipeError
from thalweg.laws.corpus_laws import BUILT_IN, Laws
from thalweg.laws.rate_rule import RateRule
from thalweg.laws.repetition import effective_tokens, weight_decay_factor
from thalweg.recipe import Choice, default_choice

AS_SAID = "as the recipe says"


class Decision(NamedTuple):
    """A value and why, in one line."""

    value: Any
    reason: str


class Forecast(NamedTuple):
    """Held-out bits a byte with its 95% interval; None where nothing can be foretold."""

    value: float | None
    low: float | None
    high: float | None


@cache
def constants() -> dict[str, Any]:
    """The measured constants and where they come from."""
    return json.loads((Path(__file__).parent / "constants.json").read_text(encoding="utf-8"))


# -- shapes of a step -----------------------------------------------------------------------------------------------


def context(tokens: float, most: int) -> Decision:
    """Window length: longer windows pay once the budget is large enough to learn from them.

    Args:
        tokens: that will be trained on.
        most: what corpus, model and memory allow.
    """
    rule = constants()["context"]
    value = rule["smallest"]
    if value > most:
        return Decision(most, f"{most} tokens: all that corpus, model and memory allow")
    while value * rule["growth_tokens"] <= tokens and 2 * value <= min(rule["largest"], most):
        value *= 2
    return Decision(
        value, f"{value} tokens: longer windows slow every step and pay only with more tokens to learn from"
    )


def batch_tokens(tokens: float) -> float:
    """Tokens a step, not rounded: the critical batch grows about with the square root of the tokens trained on."""
    rule = constants()["batch"]
    return rule["tokens"] * (tokens / rule["at_tokens"]) ** rule["exponent"]


def batch_windows(tokens: float, window: int, train_windows: int, ranks: int) -> Decision:
    """Windows a step, over all ranks, from `batch_tokens`.

    A power of two, at least 4, where the corpus has as many; always a multiple of `ranks`.
    """
    value = 2 ** max(round(math.log2(max(batch_tokens(tokens) / window, 1))), 2)
    exponent = constants()["batch"]["exponent"]
    reason = f"{{}} windows of {window} tokens a step: grows as tokens^{exponent:g}"
    if value > train_windows:
        value, reason = train_windows, f"{{}} windows of {window} tokens a step: the corpus has no more"
    value = max(value // ranks, 1) * ranks
    return Decision(value, reason.format(value))


def largest_divisor(rows: int, most: int) -> int:
    """The largest divisor of `rows` that is at most `most` (and at least 1): equal micro-batches, no remainder."""
    return max(size for size in range(1, max(min(rows, most), 1) + 1) if rows % size == 0)


# -- the optimizer and the schedule ---------------------------------------------------------------------------------


def peak_lr(card: Card, width: int, laws: Laws) -> Decision:
    """Peak learning rate: measured at one width, carried to others by an exponent.

    Raises:
        RecipeError: neither the laws nor the optimizer's card have a measured rate.
    """
    rule = laws.rates.get(card.name) or card_rule(card)
    reason = f"{rule.peak_lr:g} at width {rule.at_width} was best for {card.name}"
    if card.name in laws.rates and laws.origin != BUILT_IN:
        reason += " in the wind tunnel"
    return Decision(_rounded(rule.at(width)), f"{reason}; falls as width^-{rule.width_exponent:g}")


def card_rule(card: Card) -> RateRule:
    """The rule on an optimizer's card. Raises RecipeError where there is none."""
    base = card.defaults
    if "peak_lr" not in base:
        raise RecipeError(
            f"no peak learning rate was measured for {card.name}",
            where="training.peak_lr",
            fix="Say one: --set training.peak_lr=0.001.",
        )
    return RateRule(base["peak_lr"], base["at_width"], base["width_exponent"], f"the card of {card.name}")


def peak_lr_of_trained(card: Card, width: int, laws: Laws) -> Decision:
    """Peak rate for a model that comes trained: a tenth of the rate from scratch (a common choice, not measured)."""
    found = peak_lr(card, width, laws)
    return Decision(
        _rounded(found.value / 10), f"a tenth of the rate from scratch, since the model comes trained; {found.reason}"
    )


def base_width(callbacks: Iterable[Choice], width: int) -> Decision:
    """The width to take the peak rate at: the model's, or the `base_width` of a method that scales rates from there."""
    for choice in callbacks:
        option = lookup(choice.name).options.get("base_width")
        if option is not None:
            value = int(choice.options.get("base_width", option.default))
            return Decision(value, f"; that of width {value}, from which {choice.name} carries it")
    return Decision(width, "")


def weight_decay(card: Card, epochs: float, parameters_per_token: float) -> Decision:
    """Decoupled weight decay: the optimizer's own, stronger when data is repeated.

    Args:
        epochs: passes over the training split.
        parameters_per_token: non-embedding parameters over unique training tokens.
    """
    usual = card.defaults.get("weight_decay", 0.0)
    if epochs <= 1:
        return Decision(usual, "the optimizer's default")
    value = _rounded(usual * weight_decay_factor(epochs, parameters_per_token))
    if value == usual:
        return Decision(usual, f"the optimizer's default; {epochs:.1f} epochs want no more of so small a model")
    return Decision(value, f"{usual:g} is usual; stronger, since the corpus is read {epochs:.1f} times")


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def warmup(schedule: Choice) -> Decision:
    """Share of the budget that the schedule spends warming up; None for schedules that have no such option."""
    option = lookup(schedule.name).options.get("warmup")
    if option is None:
        return Decision(None, f"{schedule.name} has no warm-up")
    if "warmup" in schedule.options:
        return Decision(schedule.options["warmup"], AS_SAID)
    return Decision(option.default, f"the default of {schedule.name}")


def method(choice: Choice, slot: str) -> Decision:
    """An optimizer or a schedule: the house's default for its slot, or what the recipe says."""
    card = lookup(choice.name)
    default = choice == default_choice(slot)
    idea = f"{card.idea[:1].lower()}{card.idea[1:].rstrip('.')}"
    return Decision(str(choice), f"the default: {idea}" if default else f"{AS_SAID}: {idea}")


# -- the law --------------------------------------------------------------------------------------------------------


def predicted_bits_per_byte(parameters: float, tokens: float, unique_tokens: float, laws: Laws) -> Forecast:
    """Held-out bits a byte after training: L(N, D) with repeated data discounted, and its 95% interval.

    Args:
        parameters: N, parameters in matrix products (non-embedding and output table).
        tokens: D, tokens trained on, repeats counted each time.
        unique_tokens: tokens in the training split.
        laws: whose law is used.
    """
    return Forecast(*laws.forecast(parameters, effective_tokens(tokens, unique_tokens)))


def paired_parameters(tokens: float, unique_tokens: float, laws: Laws) -> float:
    """The N that the law pairs with so many tokens at least compute; repeated tokens are discounted.

    At the least loss for a given N * D the two falling parts of the law are worth the same, alpha A / N^alpha =
    beta B / D^beta, which is solved for N.
    """
    law, worth = laws.law, effective_tokens(tokens, unique_tokens)
    return (law.alpha * law.A / (law.beta * law.B) * worth**law.beta) ** (1 / law.alpha)
