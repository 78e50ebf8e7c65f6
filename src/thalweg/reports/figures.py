"""The charts as plain data: what the page's script draws, each series against steps, tokens and seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from thalweg.reports.curves import Curve, Point, Position, middle
from thalweg.reports.formats import finite, fixed, significant
from thalweg.reports.history import History
from thalweg.reports.record import Record

Chart = dict[str, Any]
AXES = ("steps", "tokens", "seconds")
# identity, title, unit, field of a step, field of an evaluation, logarithmic axis
PLANS: tuple[tuple[str, str, str, str, str, bool], ...] = (
    ("bits", "Bits per byte", "training and held-out", "bits_per_byte", "bits_per_byte", False),
    ("loss", "Loss", "nats per token, training and held-out", "loss", "loss", False),
    ("lr", "Learning rate", "", "lr", "", False),
    ("gradient", "Gradient norm before clipping", "", "grad_norm", "", True),
    ("throughput", "Throughput", "tokens per second", "tokens_per_second", "", False),
    ("mfu", "Model FLOPs utilisation", "share of the machine's peak", "mfu", "", False),
)


def rounded(value: float | None) -> float | None:
    """Six significant digits: more than a screen shows, and half the bytes."""
    number = finite(value)
    if number is None:
        return None
    short = float(f"{number:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def along(positions: Iterable[Position]) -> dict[str, list[float | None]]:
    """The three x axes of a series."""
    listed = list(positions)
    return {
        # Steps, tokens and seconds are read off the axis: integers stay exact.
        "steps": [int(at.step) if float(at.step).is_integer() else at.step for at in listed],
        "tokens": [None if at.tokens is None else round(at.tokens) for at in listed],
        "seconds": [None if at.seconds is None else round(at.seconds, 2) for at in listed],
    }


def series(name: str, kind: str, role: str, points: list[Point]) -> Chart:
    """One trace: kind says how it is drawn (points, line), role its colour (train, held, aside)."""
    return {
        "name": name,
        "kind": kind,
        "role": role,
        **along(point.at for point in points),
        "y": [rounded(point.value) for point in points],
    }


def charts(record: Record) -> list[Chart]:
    """All charts of a run; one without any data has an empty list of series."""
    return [_chart(record, *plan) for plan in PLANS]


def _chart(
    record: Record, identity: str, title: str, unit: str, measured: str, evaluated: str, logarithmic: bool
) -> Chart:
    history = record.history
    curve = history.curves[measured]
    drawn = _step_series(curve, measured, logarithmic)
    if evaluated:
        drawn += _evaluation_series(history, evaluated)
    if identity == "bits":
        drawn += _forecast(record)
    level = _level(record, measured)
    return {
        "id": identity,
        "title": title,
        "unit": unit,
        "wide": bool(evaluated),
        "log": logarithmic,
        "percent": identity == "mfu",
        "fromZero": identity in ("throughput", "mfu", "lr"),
        "series": drawn,
        "level": level,
        "marks": _marks(history, curve) if curve.buckets else None,
        "summary": _summary(title, curve, history, evaluated),
    }


def _step_series(curve: Curve, measured: str, logarithmic: bool) -> list[Chart]:
    if not curve.buckets:
        return []
    points = curve.points()
    if logarithmic:
        points = [point for point in points if point.value > 0]
    # The learning rate is a function, not a measurement: a line through all points, nothing to smooth.
    if measured == "lr":
        return [series("learning rate", "line", "train", points)]
    trend = curve.trend(logarithmic=logarithmic)
    drawn = [_band(curve) if curve.points_a_bucket > 1 else series("each step", "points", "train", points)]
    if trend:
        drawn.append(series("smoothed", "line", "train", trend))
    if curve.abandoned:
        drawn.append(series("walked, then gone back", "points", "aside", curve.abandoned))
    return drawn


def _band(curve: Curve) -> Chart:
    """The lowest and highest step of each stretch: dots alone would look like two curves in a long run."""
    where = [middle(bucket) for bucket in curve.buckets]
    where[0], where[-1] = curve.buckets[0].first.at, curve.buckets[-1].last.at
    low = [rounded(bucket.lowest.value) for bucket in curve.buckets]
    high = [rounded(bucket.highest.value) for bucket in curve.buckets]
    return {
        "name": f"range of {curve.points_a_bucket} steps",
        "kind": "band",
        "role": "train",
        **along(where),
        "y": high,
        "low": low,
        "high": high,
    }


def _evaluation_series(history: History, evaluated: str) -> list[Chart]:
    found = [(e, getattr(e, evaluated)) for e in history.evaluations if getattr(e, evaluated) is not None]
    if not found:
        return []
    chart = series("held-out", "marked", "held", [Point(e.at, value) for e, value in found])
    if evaluated == "bits_per_byte":
        chart["low"] = [rounded(e.low) for e, _ in found]
        chart["high"] = [rounded(e.high) for e, _ in found]
    return [chart]


def _forecast(record: Record) -> list[Chart]:
    """The plan's prediction, drawn where the plan ends."""
    chosen = record.chosen
    predicted = finite(chosen.get("predicted_bits_per_byte"))
    if predicted is None:
        return []
    tokens, speed = finite(chosen.get("tokens")), finite(chosen.get("tokens_per_second"))
    step = finite(chosen.get("steps"))
    seconds = tokens / speed if tokens is not None and speed else None
    chart = series("planned", "forecast", "plan", [Point(Position(step or 0, tokens, seconds), predicted)])
    if step is None:
        chart["steps"] = [None]
    chart["low"] = [rounded(finite(chosen.get("predicted_low")))]
    chart["high"] = [rounded(finite(chosen.get("predicted_high")))]
    return [chart]


def _level(record: Record, measured: str) -> Chart | None:
    """A horizontal line for what the plan counted on."""
    planned = finite(record.chosen.get("tokens_per_second")) if measured == "tokens_per_second" else None
    return None if planned is None else {"name": "planned", "y": rounded(planned)}


def _marks(history: History, curve: Curve) -> Chart:
    """Restored, skipped and resumed steps, at the height of the nearest step before them."""
    points = sorted([*curve.points(), *curve.abandoned], key=lambda point: point.at.step)
    heights = []
    for mark in history.marks:
        before = [point for point in points if point.at.step <= mark.at.step] or points[:1]
        heights.append(rounded(before[-1].value))
    return {
        "kinds": [mark.kind for mark in history.marks],
        "texts": [mark.text for mark in history.marks],
        **along(mark.at for mark in history.marks),
        "y": heights,
    }


def _summary(title: str, curve: Curve, history: History, evaluated: str) -> str:
    """The chart in a sentence, for those who cannot see it."""
    if not curve.buckets:
        return f"{title}: nothing recorded."
    spell: Callable[[float], str] = fixed if evaluated else significant
    trend = curve.trend() or curve.points()
    sentence = (
        f"{title} goes from {spell(trend[0].value)} to {spell(trend[-1].value)} over {history.at.step:,.0f} steps"
    )
    last = getattr(history.final, evaluated) if evaluated and history.final else None
    return f"{sentence}; held-out {spell(last)} at the end." if last is not None else f"{sentence}."
