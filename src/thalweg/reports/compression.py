"""A compression as a page: what the model was, what it has become, and what each layer lost.

Everything comes from the plain data that `sessions.compress.compress` gives back (compression.json).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.reports import document
from thalweg.reports import pictures as house
from thalweg.reports.formats import clean
from thalweg.runs import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Told = dict[str, Any]


def rows(told: Told) -> Iterator[tuple[str, str, str]]:
    """What is compared: (name, before, after), as text."""
    before, after = told["before"], told["after"]

    def both(name: str, key: str, spelled: Any) -> tuple[str, str, str]:
        return name, spelled(before.get(key)), spelled(after.get(key))

    yield both("bits per byte", "bits_per_byte", lambda value: _number(value, ".4f"))
    yield "bits, 95% interval", _interval(before, "", ".4f"), _interval(after, "", ".4f")
    yield both("perplexity a token", "perplexity", lambda value: _number(value, ",.2f"))
    yield "perplexity, 95% interval", _interval(before, "perplexity_", ",.2f"), _interval(after, "perplexity_", ",.2f")
    yield "same next token", "", _number(after.get("agreement"), ".1%")
    yield both("matrix nuclear norm", "matrix_nuclear_norm", lambda value: _number(value, ".4f"))
    yield both("bytes on disk", "disk_bytes", _bytes)
    yield both("bytes in memory", "memory_bytes", _bytes)
    yield both("parameters", "parameters", lambda value: _number(value, ",d"))
    yield both("of them not zero", "non_zero", lambda value: _number(value, ",d"))
    yield both("bits a weight of the blocks", "bits_per_weight", lambda value: _number(value, ".2f"))
    yield both("tokens/s of a forward pass", "tokens_per_second", lambda value: _number(value, ",.0f"))


def _number(value: Any, spelled: str) -> str:
    return "" if value is None else format(value, spelled)


def _interval(side: Told, of: str, spelled: str) -> str:
    low, high = (_number(side.get(f"{of}{end}"), spelled) for end in ("low", "high"))
    return f"{low} to {high}" if low and high else ""


def _bytes(value: Any) -> str:
    return "" if value is None else f"{value / 1e6:,.2f} MB"


def errors(told: Told) -> list[tuple[str, list[tuple[str, float]]]]:
    """Of every step that measured them: (step, [(layer, share of its outputs' squared length that is error)])."""
    found = []
    for step in told["found"]:
        layers = [
            (f"{block['name']}.{name}", error)
            for block in step.get("blocks", [])
            for name, error in (block.get("errors") or {}).items()
            if error is not None
        ]
        if layers:
            found.append((step["step"], layers))
    return found


def notes_of_layers(told: Told, most: int = 6) -> list[str]:
    """What is to be known of layers, the most frequent first, with how many it is said of."""
    counted = Counter(note for layer in told["layers"] for note in layer["notes"]).most_common()
    found = [f"{note} ({count} of {len(told['layers'])} layers)." for note, count in counted[:most]]
    return found + ([f"{len(counted) - most} other notes are in the report."] if len(counted) > most else [])


def figure(told: Told) -> Figure:
    """The error of every layer's outputs, a line a step."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(house.WIDTH, 3.6), layout="constrained", facecolor="white")
    axes = made.subplots()
    for number, (step, layers) in enumerate(errors(told)):
        hue = house.PALETTE[number % len(house.PALETTE)][0]
        axes.plot([max(error, 1e-12) for _, error in layers], "o-", color=hue, markersize=3, label=house.plain(step))
    axes.set_yscale("log")
    axes.set_xlabel("linear layers of the blocks, in order")
    axes.set_ylabel("error / length of outputs")
    house.dress(axes)
    if errors(told):
        house.legend(made, axes)
    return made


def page(told: Told) -> str:
    """One HTML file with everything inside it; no script."""
    lost = [(clean(step), [(clean(name), error) for name, error in layers]) for step, layers in errors(told)]
    layers = [
        {**layer, "name": clean(layer["name"]), "notes": list(map(clean, layer["notes"]))} for layer in told["layers"]
    ]
    return document.still(
        "compression",
        house.svg(figure(told)),
        told=told,
        model=clean(told["model"]),
        steps=[(clean(one["step"]), one["seconds"]) for one in told["found"]],
        rows=list(rows(told)),
        errors=lost,
        layers=layers,
        notes=list(map(clean, told["stored"].get("notes", []))),
    )


def write(told: Told, path: Path) -> Path:
    """Write the page."""
    write_text(path, page(told))
    return path
