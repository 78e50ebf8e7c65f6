"""Numbers and foreign text in a form that people can read and that cannot surprise a page.

Escaping for HTML is the template's work (jinja2, autoescape). Here characters are dealt with that escaping leaves
alone: control characters, half surrogates, and the invisible marks that turn the direction of text.
"""

from __future__ import annotations

import math
import re
import shlex
from typing import Any

MISSING = "—"
# C0 and C1 controls but tab and newline, half surrogates, and the bidirectional controls behind "Trojan source".
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def clean(text: Any) -> str:
    """The text with every control, half surrogate and direction mark made visible."""

    def visible(match: re.Match[str]) -> str:
        code = ord(match.group())
        return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"

    return UNSAFE.sub(visible, str(text).replace("\r\n", "\n"))


def finite(value: Any) -> float | None:
    """A finite float, or None for anything else (null, NaN, infinity, text, a number beyond floats)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def significant(value: Any, digits: int = 4) -> str:
    """A number with so many significant digits, grouped: 0.0003, 1.842, 12,340."""
    number = finite(value)
    if number is None:
        return MISSING
    if number == 0:
        return "0"
    exponent = math.floor(math.log10(abs(number)))
    if exponent < -4 or exponent >= 15:
        return f"{number:.{digits - 1}e}"
    rounded = f"{number:,.{max(0, digits - 1 - exponent)}f}"
    return rounded.rstrip("0").rstrip(".") if "." in rounded else rounded


def fixed(value: Any, digits: int = 4) -> str:
    """A number with so many places behind the point, for columns that are read downwards."""
    number = finite(value)
    return MISSING if number is None else f"{number:,.{digits}f}"


def whole(value: Any) -> str:
    """A count with grouped digits: 12,345."""
    number = finite(value)
    return MISSING if number is None else f"{number:,.0f}"


def amount(value: Any, digits: int = 3) -> str:
    """A large count in short: 12.3 M. Units of a thousand, as in tokens and parameters."""
    number = finite(value)
    if number is None:
        return MISSING
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999,960 would round to "1000 k": it belongs to the next letter.
        if abs(number) >= size * (1 - 0.5 * 10**-digits):
            return f"{significant(number / size, digits)} {letter}"
    return significant(number, digits)


def memory(value: Any) -> str:
    """Bytes in GiB or MiB."""
    number = finite(value)
    if number is None:
        return MISSING
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def duration(value: Any) -> str:
    """Seconds as 8.4 s, 1 min 58 s, 3 h 05 min."""
    number = finite(value)
    if number is None:
        return MISSING
    if number < 60:
        return f"{significant(number, 3)} s"
    minutes, seconds = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def percent(value: Any, *, sign: bool = False) -> str:
    """A ratio as a percentage: 0.031 is 3.1 %."""
    number = finite(value)
    if number is None:
        return MISSING
    return f"{100 * number:+.1f} %" if sign else f"{100 * number:.1f} %"


def command_line(command: Any) -> str:
    """The command to repeat a run, quoted for a shell where it comes as a list; "" if there is none."""
    if isinstance(command, list):
        return shlex.join(str(part) for part in command)
    return command.strip() if isinstance(command, str) else ""


def spelled(value: Any) -> str:
    """Any JSON value in a table cell."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) < 10**15:
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, int | float):
        return significant(value, 6)
    if isinstance(value, list):
        return ", ".join(spelled(item) for item in value)
    return clean(value)


def flattened(value: Any, prefix: str = "", depth: int = 0) -> list[tuple[str, str]]:
    """Nested tables as rows with dotted keys: {"cpu": {"cores": 2}} is [("cpu.cores", "2")]."""
    if isinstance(value, dict) and value and depth < 6:
        rows = []
        for key, inner in value.items():
            rows += flattened(inner, f"{prefix}.{key}" if prefix else str(key), depth + 1)
        return rows
    return [(clean(prefix), spelled(value))] if prefix else []
