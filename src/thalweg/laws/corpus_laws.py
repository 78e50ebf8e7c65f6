"""What was measured of one corpus, as the planner uses it: the law of the loss, rates by optimizer, and their origin.

The same form holds the constants that come with Thalweg (planner/constants.json) and what a wind tunnel writes
(laws.json). A file comes from anywhere, so every number in it is looked at before it is believed.

Units: N parameters in matrix products, D tokens, L bits a byte held out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.errors import UserError
from thalweg.laws import fitting
from thalweg.laws.chinchilla import ChinchillaLaw
from thalweg.laws.rate_rule import RateRule

SCHEMA = 1
BUILT_IN = "built-in"
_LARGEST_ERROR = 10.0  # of a log loss; beyond, nothing is known at all
_FIX = "Write it again with `thalweg wind-tunnel`, or plan with --laws built-in."


@dataclass(frozen=True)
class Laws:
    """The laws of a corpus.

    Args:
        law: L(N, D), with its refits where it was fitted here.
        rates: the rule of the peak rate by the optimizer's name.
        source: how it was measured, in a sentence.
        arm: what the runs trained with.
        corpus: as it was named. content_hash, tokenizer_hash: of the token store; None where it fits any.
        vocab_size: of the tokenizer.
        points: rows (parameters, tokens, bits a byte) of the runs behind the law; tokens count repeats each time.
        origin: which these are: "built-in", or a path.
    """

    law: ChinchillaLaw
    rates: dict[str, RateRule]
    source: str
    arm: str
    corpus: str
    content_hash: str | None
    tokenizer_hash: str | None
    vocab_size: int
    points: tuple[tuple[float, float, float], ...] = ()
    origin: str = field(default=BUILT_IN, compare=False)

    def forecast(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """Bits a byte after training, and the 95% interval of a new run."""
        value = float(self.law.predict(parameters, tokens))
        if len(self.law.refits):
            low, high = self.law.interval(parameters, tokens)
            return value, min(low, value), max(high, value)
        spread = math.exp(1.96 * self.law.sigma)
        return value, value / spread, value * spread

    def described(self) -> dict[str, Any]:
        """A plan's `law`: constants, error, and where they come from."""
        rates = {name: {**vars(rule), "points": len(rule.points)} for name, rule in self.rates.items()}
        named = {"origin": self.origin, "source": self.source, "corpus": self.corpus, "arm": self.arm}
        return {**self.law.to_dict(), "sigma": self.law.sigma, **named, "rates": rates}

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `from_dict` reads it."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "arm": self.arm,
            "corpus": self.corpus,
            "content_hash": self.content_hash,
            "tokenizer_hash": self.tokenizer_hash,
            "vocab_size": self.vocab_size,
            "law": {**self.law.to_dict(), "sigma": self.law.sigma},
            "rates": {
                name: {**vars(rule), "points": [list(point) for point in rule.points]}
                for name, rule in self.rates.items()
            },
            "points": [list(point) for point in self.points],
            "refits": [[float(f"{value:.7g}") for value in row] for row in self.law.refits.tolist()],
            "errors": [float(f"{value:.5g}") for value in self.law.errors.tolist()],
        }

    @classmethod
    def from_dict(cls, said: Any, where: str) -> Laws:
        """Read what `to_dict` gave; other keys are left alone. Raises UserError for what cannot be a law."""
        table = _Reader(said, where)
        if table.value("schema") != SCHEMA:
            raise UserError(f"laws of the form {table.value('schema')!r} cannot be read", where=where, fix=_FIX)
        inner = _Reader(table.value("law"), where, "law.")
        scales = {name: inner.number(name, 0, 1e60) for name in ("A", "B", "E")}
        exponents = {name: inner.number(name, 0, fitting.LARGEST_EXPONENT) for name in ("alpha", "beta")}
        law = ChinchillaLaw(
            **scales,
            **exponents,
            refits=table.rows("refits", 5),
            errors=table.rows("errors"),
            sigma=inner.number("sigma", -1e-300, _LARGEST_ERROR),
        )
        if len(law.refits) != len(law.errors) or not _possible(law):
            raise UserError("refits and errors are none of a law", where=where, fix=_FIX)
        return cls(
            law=law,
            rates=_rates(table.value("rates"), where),
            points=table.points(),
            vocab_size=int(table.number("vocab_size", 1, 1e9)),
            **{name: table.text(name) for name in ("source", "arm", "corpus")},
            **{name: table.text(name, optional=True) for name in ("content_hash", "tokenizer_hash")},
        )


def _possible(law: ChinchillaLaw) -> bool:
    """Whether refits and their errors are such as fits give."""
    low, high = fitting.BOUNDS
    inside = ((law.refits >= np.minimum(low, 0)) & (law.refits <= high)).all()
    return bool(inside and ((law.errors >= 0) & (law.errors <= _LARGEST_ERROR)).all())


def load(path: str | Path) -> Laws:
    """The laws in a file. Raises UserError for one that is missing, damaged, or holds no laws."""
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the laws: {error.strerror}", where=str(path), fix=_FIX) from None
    except (ValueError, RecursionError):
        raise UserError("the laws are not JSON", where=str(path), fix=_FIX) from None
    return replace(Laws.from_dict(said, str(path)), origin=str(path))


def _rates(said: Any, where: str) -> dict[str, RateRule]:
    table = _Reader(said, where, "rates.")
    found = {}
    for name in table.said:
        rule = _Reader(table.value(name), where, f"rates.{name}.")
        found[name] = RateRule(
            peak_lr=rule.number("peak_lr", 0, 1e3),
            at_width=int(rule.number("at_width", 0.5, 1e7)),
            width_exponent=rule.number("width_exponent", -8, 8),
            source=rule.text("source"),
            points=rule.points(),
        )
    return found


class _Reader:
    """Takes values out of a JSON object and says which one is wrong."""

    def __init__(self, said: Any, where: str, prefix: str = "") -> None:
        self.where, self.prefix = where, prefix
        if not isinstance(said, dict):
            raise UserError(f"{prefix.rstrip('.') or 'the content'} is no object", where=where, fix=_FIX)
        self.said: dict[str, Any] = said

    def value(self, name: str) -> Any:
        if name not in self.said:
            raise UserError(f"there is no {self.prefix}{name}", where=self.where, fix=_FIX)
        return self.said[name]

    def number(self, name: str, above: float, most: float) -> float:
        """A number above `above` and at most `most`."""
        return self._checked(name, self.value(name), lambda value: above < value <= most)

    def text(self, name: str, optional: bool = False) -> Any:
        value = self.value(name)
        if isinstance(value, str) or (optional and value is None):
            return value
        raise self._wrong(name, "no text")

    def rows(self, name: str, columns: int | None = None) -> np.ndarray:
        """Numbers [R], or rows of them [R, columns]."""
        said = self.value(name)
        if not isinstance(said, list):
            raise self._wrong(name, "no list")
        rows = said if columns is not None else [[value] for value in said]
        if any(not isinstance(row, list) or len(row) != (columns or 1) for row in rows):
            raise self._wrong(name, f"not made of rows of {columns or 1}")
        table = [[self._checked(name, value, lambda _: True) for value in row] for row in rows]
        return np.array(table, float).reshape(len(rows), *([columns] if columns is not None else []))

    def points(self) -> tuple[tuple[float, float, float], ...]:
        """Rows of three positive numbers."""
        rows = self.rows("points", 3)
        if not (rows > 0).all():
            raise self._wrong("points", "not positive")
        return tuple((float(first), float(second), float(loss)) for first, second, loss in rows)

    def _checked(self, name: str, value: Any, allowed: Callable[[float], bool]) -> float:
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        # Larger integers than floats can be are as little a constant as an infinity.
        if not (abs(number) < 1e300 and allowed(float(number))):
            raise self._wrong(name, f"not in range: {str(value)[:40]}")
        return float(number)

    def _wrong(self, name: str, what: str) -> UserError:
        return UserError(f"{self.prefix}{name} is {what}", where=self.where, fix=_FIX)
