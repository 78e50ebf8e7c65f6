"""What may be spent: seconds, steps, tokens, epochs or floating-point operations."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from thalweg.errors import BudgetError

UNITS = ("seconds", "steps", "tokens", "epochs", "flops")
_SECONDS = {"d": 86400.0, "h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}
_LONG = {"day": "d", "hour": "h", "hr": "h", "minute": "min", "second": "s", "sec": "s"}
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_BYTES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_EXAMPLES = 'Write it as "90s", "2min", "1h30m", "2000 steps", "50M tokens", "2 epochs" or "1e17 flops".'
_NUMBER = r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)"


@dataclass(frozen=True)
class Budget:
    """An amount in one of `UNITS`; the amount is positive and finite, whole for steps and tokens."""

    amount: float
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise BudgetError(f"{self.unit!r} is no unit of a budget", fix=_EXAMPLES)
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise BudgetError(f"a budget of {self.amount:g} {self.unit} buys nothing", fix="Give more than zero.")
        if self.unit in ("steps", "tokens"):
            if round(self.amount) < 1:
                raise BudgetError(f"a budget of {self.amount:g} {self.unit} buys nothing", fix="Give at least one.")
            object.__setattr__(self, "amount", float(round(self.amount)))

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget as people write it; `BudgetError` tells what can be written."""
        if not isinstance(text, str):
            raise BudgetError(f"{text!r} is no budget", fix=_EXAMPLES)
        words = text.strip().lower().replace(",", "").replace("_", "")
        counted = re.fullmatch(_NUMBER + r"\s*([kmbgt]?)\s*(steps?|tokens?|epochs?|flops?)", words)
        if counted:
            number, scale, unit = counted.groups()
            return cls(float(number) * _SCALES[scale], unit.rstrip("s") + "s")
        return cls(_seconds(words, text), "seconds")

    def __str__(self) -> str:
        """The canonical spelling; `Budget.parse(str(budget)) == budget`."""
        if self.unit != "seconds":
            number = repr(int(self.amount)) if self.amount < 1e15 and self.amount.is_integer() else repr(self.amount)
            return f"{number.replace('e+', 'e')} {self.unit[:-1] if number == '1' else self.unit}"
        for name in ("h", "min"):
            whole = self.amount / _SECONDS[name]
            if whole.is_integer() and whole < 1e15:
                return f"{int(whole)}{name}"
        return f"{repr(self.amount).removesuffix('.0').replace('e+', 'e')}s"


def parse_bytes(text: str) -> float | None:
    """A size as people write it, "8GB", "6 GiB" or "120m", in bytes; None where it is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    return float(found.group(1)) * _BYTES[found.group(2)] if found and found.group(2) in _BYTES else None


def _seconds(words: str, original: str) -> float:
    total, rest = 0.0, words
    unit_pattern = r"\s*(days?|hours?|hrs?|minutes?|mins?|seconds?|secs?|[dhms])\s*"
    while rest:
        part = re.match(_NUMBER + unit_pattern, rest)
        if not part:
            break
        name = part.group(2)
        name = name.rstrip("s") if len(name) > 1 else name
        total += float(part.group(1)) * _SECONDS[_LONG.get(name, name)]
        rest = rest[part.end() :]
    if rest or not words:
        raise BudgetError(f"cannot read the budget {original!r}", fix=_EXAMPLES)
    return total
