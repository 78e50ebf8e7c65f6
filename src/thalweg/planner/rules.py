"""The planner's rules: one small function a decision, each returning the value and the reason in words.

Constants come from `constants.json`, which `benchmarks/calibrate.py` measures on the embedded corpus.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from thalweg.catalog import Card
from thalweg.laws.chinchilla import ChinchillaLaw
from thalweg.laws.repetition import effective_tokens, weight_decay_factor


class Decision(NamedTuple):
    value: Any
    reason: str


@cache
def constants() -> dict[str, Any]:
    """The measured constants and where they come from."""
    return json.loads((Path(__file__).parent / "constants.json").read_text(encoding="utf-8"))


def context(tokens: float, most: int) -> Decision:
    """Window length: longer windows pay once the budget is large enough to learn from them."""
    rule = constants()["context"]
    value = rule["smallest"]
    while value * rule["growth_tokens"] <= tokens and value < rule["largest"]:
        value *= 2
    value = min(value, most)
    return Decision(
        value, f"{value} tokens: longer windows slow every step and pay only with more tokens to learn from"
    )


def batch_windows(tokens: float, window: int, train_windows: int, ranks: int) -> Decision:
    """Windows a step: the critical batch grows about with the square root of the tokens trained on."""
    rule = constants()["batch"]
    wanted = rule["tokens"] * (tokens / rule["at_tokens"]) ** rule["exponent"] / window
    value = 2 ** max(round(math.log2(max(wanted, 1))), 2)
    value = max(min(value, train_windows), 1)
    value = max(value // ranks, 1) * ranks
    return Decision(value, f"{value} windows of {window} tokens a step: grows as tokens^{rule['exponent']}")


def peak_lr(card: Card, width: int, batch_tokens: int) -> Decision:
    """Peak learning rate: measured at one width, carried to others by the optimizer's measured exponent."""
    base = card.defaults
    value = base["peak_lr"] * (base["at_width"] / width) ** base["width_exponent"]
    value = float(f"{value:.3g}")
    reason = f"{base['peak_lr']:g} at width {base['at_width']} was best for {card.name}"
    return Decision(value, f"{reason}; falls as width^-{base['width_exponent']:g}")


def weight_decay(card: Card, epochs: float, parameters_per_token: float) -> Decision:
    """Decoupled weight decay: the optimizer's own, stronger when data is repeated."""
    value = card.defaults["weight_decay"] * weight_decay_factor(epochs, parameters_per_token)
    reason = "the optimizer's default" if epochs <= 1 else f"stronger, since the corpus is read {epochs:.1f} times"
    return Decision(float(f"{value:.3g}"), reason)


class Forecast(NamedTuple):
    value: float
    low: float
    high: float


def predicted_bits_per_byte(parameters: float, tokens: float, unique_tokens: float) -> Forecast:
    """Held-out bits a byte after training: L(N, D) with repeated data discounted, and its 95% interval.

    Args:
        parameters: N, parameters in matrix products (non-embedding and output table).
        tokens: D, tokens trained on, repeats counted each time.
        unique_tokens: tokens in the training split.
    """
    law = constants()["law"]
    fitted = ChinchillaLaw(**{key: law[key] for key in ("E", "A", "B", "alpha", "beta")})
    value = float(fitted.predict(parameters, effective_tokens(tokens, unique_tokens)))
    spread = math.exp(1.96 * law["sigma"])
    return Forecast(value, value / spread, value * spread)
