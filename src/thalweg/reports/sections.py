"""The report's tables: the headline, the plan beside what happened, the reasons, the samples, the surroundings.

Everything here is text and numbers for the template, which escapes them; nothing here makes HTML.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from thalweg.budget import Budget
from thalweg.errors import BudgetError
from thalweg.reports import formats
from thalweg.reports.formats import MISSING, clean, finite
from thalweg.reports.record import Record, table

LONGEST_SAMPLE = 20_000
MOST_SAMPLES = 60
MOST_CANDIDATES = 200
Row = dict[str, Any]


def interval(low: Any, high: Any, digits: int = 4) -> str:
    """ "1.812 to 1.871", or "" when an end is missing."""
    if finite(low) is None or finite(high) is None:
        return ""
    return f"{formats.fixed(low, digits)} to {formats.fixed(high, digits)}"


def headline(record: Record) -> Row:
    """The numbers that one looks for first."""
    history, last = record.history, record.history.final
    status, reason = history.status()
    loss = last.loss if last else None
    perplexity = last.perplexity if last else None
    if perplexity is None and loss is not None and loss < 700:
        perplexity = math.exp(loss)
    return {
        "status": status,
        "reason": reason,
        "name": clean(Path(record.folder).resolve().name),
        "arm": clean(record.arm),
        "corpus": clean(record.corpus),
        "budget": clean(record.budget),
        "started": clean(record.environment.get("started") or ""),
        "bits": formats.fixed(last.bits_per_byte) if last else MISSING,
        "interval": interval(last.low, last.high) if last else "",
        "measured_at": formats.whole(last.at.step) if last else "",
        "facts": [
            ("held-out loss", formats.fixed(loss), "nats per token"),
            ("perplexity", formats.significant(perplexity), "per token, held-out"),
            ("steps", formats.whole(history.at.step), _of_planned(record, "steps", formats.whole)),
            ("tokens", formats.amount(history.at.tokens), _of_planned(record, "tokens", formats.amount)),
            ("time", formats.duration(history.at.seconds), _share_of_budget(record)),
            model_size(record),
        ],
    }


def _of_planned(record: Record, key: str, spell: Any) -> str:
    planned = finite(record.chosen.get(key))
    return "" if planned is None else f"of {spell(planned)} planned"


def model_size(record: Record) -> tuple[str, str, str]:
    """A fact: the model's parameters (its name, if nobody counted them) and its shape in words."""
    chosen = record.chosen
    parameters = finite(chosen.get("parameters"))
    for candidate in record.candidates:
        if parameters is None and candidate.get("model") == chosen.get("model"):
            parameters = finite(candidate.get("parameters"))
    layers, width, heads = (finite(chosen.get(key)) for key in ("layers", "width", "heads"))
    shape = "" if layers is None or width is None else f"{layers:.0f} layers, width {width:.0f}"
    if shape and heads is not None:
        shape += f", {heads:.0f} heads"
    if parameters is None:
        return "model", clean(chosen.get("model") or MISSING), shape
    return "model parameters", formats.amount(parameters), shape


def _budget(record: Record) -> Budget | None:
    try:
        return Budget.parse(record.budget) if record.budget else None
    except BudgetError:
        return None


def spent(record: Record, unit: str) -> float | None:
    """What the run spent in a budget's unit."""
    history = record.history
    if not history.steps_seen:
        return None
    if unit == "epochs":
        chosen = record.chosen
        tokens, epochs = finite(chosen.get("tokens")), finite(chosen.get("epochs"))
        if history.at.tokens is None or not tokens or epochs is None:
            return None
        return history.at.tokens * epochs / tokens
    return {
        "steps": history.at.step,
        "tokens": history.at.tokens,
        "seconds": history.at.seconds,
        "flops": history.flops,
    }[unit]


def _share_of_budget(record: Record) -> str:
    budget = _budget(record)
    if budget is None:
        return ""
    used = spent(record, budget.unit)
    if used is None:
        return f"budget {budget}"
    return f"{formats.percent(used / budget.amount)} of the budget, {budget}"


def plan_beside_result(record: Record) -> list[Row]:
    """Rows of quantity, planned, measured, difference; a difference is measured against planned."""
    history, chosen = record.history, record.chosen
    last, budget = history.final, _budget(record)
    planned_tokens, planned_speed = finite(chosen.get("tokens")), finite(chosen.get("tokens_per_second"))
    if budget is not None and budget.unit == "seconds":
        planned_seconds: float | None = budget.amount
    else:
        planned_seconds = planned_tokens / planned_speed if planned_tokens and planned_speed else None
    rows = [_bits_row(record)]
    for name, planned, measured, spell in (
        ("tokens per second", planned_speed, history.curves["tokens_per_second"].median(), formats.whole),
        ("steps", finite(chosen.get("steps")), spent(record, "steps"), formats.whole),
        ("tokens", planned_tokens, spent(record, "tokens"), formats.amount),
        ("epochs", finite(chosen.get("epochs")), spent(record, "epochs"), formats.significant),
        ("time", planned_seconds, spent(record, "seconds"), formats.duration),
    ):
        difference = measured / planned - 1 if measured is not None and planned else None
        rows.append(
            {
                "name": name,
                "planned": spell(planned),
                "planned_interval": "",
                "measured": spell(measured),
                "measured_interval": "",
                "difference": formats.percent(difference, sign=True),
                "note": "median over the steps" if name == "tokens per second" and measured is not None else "",
            }
        )
    if last is None and not chosen:
        return []
    return rows


def _bits_row(record: Record) -> Row:
    chosen, last = record.chosen, record.history.final
    predicted = finite(chosen.get("predicted_bits_per_byte"))
    low, high = finite(chosen.get("predicted_low")), finite(chosen.get("predicted_high"))
    measured = last.bits_per_byte if last else None
    row = {
        "name": "held-out bits per byte",
        "planned": formats.fixed(predicted),
        "planned_interval": interval(low, high),
        "measured": formats.fixed(measured),
        "measured_interval": interval(last.low, last.high) if last else "",
        "difference": MISSING,
        "note": "",
    }
    if measured is not None and predicted is not None:
        row["difference"] = f"{measured - predicted:+.4f}"
        if low is not None and high is not None:
            # A better result than foreseen also misses the forecast: the law was wrong there.
            where = "inside" if low <= measured <= high else "below" if measured < low else "above"
            row["note"] = f"{where} the predicted interval"
    return row


def candidates(record: Record) -> list[Row]:
    """The models that the plan weighed, best prediction first as the plan lists them."""
    chosen = record.chosen.get("model")
    return [
        {
            "model": clean(candidate.get("model", MISSING)),
            "chosen": candidate.get("model") == chosen,
            "parameters": formats.amount(candidate.get("parameters")),
            "speed": formats.whole(candidate.get("tokens_per_second")),
            "measured": candidate.get("measured") is True,
            "tokens": formats.amount(candidate.get("tokens")),
            "epochs": formats.significant(candidate.get("epochs"), 3),
            "predicted": formats.fixed(candidate.get("predicted_bits_per_byte")),
            "interval": interval(candidate.get("low"), candidate.get("high")),
        }
        for candidate in record.candidates[:MOST_CANDIDATES]
    ]


def decisions(record: Record) -> list[tuple[str, str, str]]:
    """What the plan gives a reason for: setting, value (if it is a setting) and the reason, one a line."""
    chosen, reasons = record.chosen, table(record.plan.get("reasons"))
    return [
        (clean(key), formats.spelled(chosen[key]) if key in chosen else "", clean(reason))
        for key, reason in reasons.items()
    ]


def samples(record: Record) -> list[Row]:
    """Samples of the last step first; long texts are cut and say so."""
    listed = sorted(record.samples, key=lambda sample: -(finite(sample.get("step")) or 0))
    newest = listed[0].get("step") if listed else None
    return [
        {
            "step": formats.whole(sample.get("step")),
            "newest": sample.get("step") == newest,
            "prompt": clean(sample.get("prompt") or ""),
            "text": clean(str(sample.get("text") or "")[:LONGEST_SAMPLE]),
            "cut": len(str(sample.get("text") or "")) > LONGEST_SAMPLE,
        }
        for sample in listed[:MOST_SAMPLES]
    ]


def notes(record: Record) -> list[str]:
    """What a careful reader should know about the record itself."""
    history, found = record.history, []
    for entry in record.lineage:
        before = f"{entry.get('schedule')}, {entry.get('budget')}"
        found.append(clean(f"Goes on from {entry.get('run')}, step {entry.get('step')} ({before})."))
    if history.torn:
        found.append("The last line of metrics.jsonl is torn and was left out: the run was stopped while writing it.")
    if history.unreadable_lines:
        found.append(f"{history.unreadable_lines:,} unreadable lines of metrics.jsonl were left out.")
    if history.nonfinite_losses:
        found.append(f"The loss was not a finite number at {history.nonfinite_losses:,} of the steps.")
    if history.steps_redone:
        found.append(f"The run went back and walked {history.steps_redone:,.0f} steps again.")
    words = {"skip": "Skipped steps", "restore": "Restored states", "resume": "Resumed from a checkpoint"}
    counts = [f"{words[kind]}: {count:,}." for kind, count in sorted(history.mark_counts.items())]
    return found + counts


def surroundings(record: Record) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled tables of the environment, the plan's machine profile and the law it used."""
    environment = record.environment
    rest = {key: value for key, value in environment.items() if key not in ("command", "versions", "machine")}
    titled = (
        ("Run", {**rest, "peak_memory": formats.memory(record.history.peak_memory)}),
        ("Versions", environment.get("versions")),
        ("Machine", environment.get("machine")),
        ("Machine as the plan measured it", record.plan.get("machine")),
        ("Law behind the forecast", record.plan.get("law")),
    )
    return [(title, formats.flattened(value)) for title, value in titled if isinstance(value, dict) and value]
