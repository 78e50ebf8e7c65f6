"""Plans as tables on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_DECISIONS = (
    ("model", "Model"),
    ("context", "Context"),
    ("batch_size", "Batch"),
    ("peak_lr", "Peak rate"),
    ("weight_decay", "Weight decay"),
    ("optimizer", "Optimizer"),
    ("schedule", "Schedule"),
    ("warmup", "Warm-up"),
    ("precision", "Precision"),
    ("compile", "Compile"),
)


def show_plan(plan: dict[str, Any]) -> None:
    """The candidates and the decisions, each with its reason, on standard error."""
    console = Console(stderr=True, highlight=False)
    chosen = plan["chosen"]
    if len(plan["candidates"]) > 1:
        console.print(_candidates(plan))
    table = Table(box=None, show_header=False, pad_edge=False)
    for column in ("bold", "", "dim"):
        table.add_column(style=column)
    for key, label in _DECISIONS:
        table.add_row(label, _written(key, chosen), plan["reasons"].get(key, ""))
    console.print(table)
    for line in law_lines(plan):
        console.print(line, style="dim")
    machine = plan["machine"]
    foretold = _bits(chosen["predicted_bits_per_byte"], chosen["predicted_low"], chosen["predicted_high"])
    console.print(
        f"{foretold} {chosen['steps']:,} steps, "
        f"{chosen['tokens'] / 1e6:.2f}M tokens ({chosen['epochs']:.2f} epochs) at "
        f"{chosen['tokens_per_second']:,.0f} tokens/s; "
        f"{machine['peak_flops'][chosen['precision']] / 1e9:,.0f} GFLOP/s measured on this machine."
    )


def law_lines(plan: dict[str, Any]) -> list[str]:
    """Which laws the plan rests on, with their constants and error: of the loss, and of the peak rate."""
    law, optimizer = plan["law"], plan["chosen"]["optimizer"].split(":")[0]
    lines = [
        f"Law, {law['origin']}: {law['E']:.4g} + {law['A']:.3g} / N^{law['alpha']:.3f} + {law['B']:.3g} / "
        f"D^{law['beta']:.3f} bits per byte, of which a run misses by {law['sigma']:.1%} ({law['source']})"
    ]
    rule = law["rates"].get(optimizer)
    if rule is None:
        return [*lines, f"Rate: the rule on the card of {optimizer}"]
    rate = f"{rule['peak_lr']:g} ({rule['at_width']} / width)^{rule['width_exponent']:g}"
    return [*lines, f"Rate, {law['origin']}: {rate} for {optimizer} ({rule['source']})"]


def _bits(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "No forecast for a model that is not of the ladder; it gets"
    return f"Expect {value:.3f} bits per byte ({low:.3f} to {high:.3f}) after"


def _written(key: str, chosen: dict[str, Any]) -> str:
    value = chosen[key]
    if key == "model":
        return f"{value} ({chosen['layers']} layers x {chosen['width']})"
    if key == "compile":
        return "on" if value else "off"
    if key == "warmup":
        return "none" if not value else f"{value:.3g} of the budget"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _candidates(plan: dict[str, Any]) -> Table:
    table = Table(title=f"What {plan['budget']} buys on {plan['corpus']}", title_justify="left")
    for name in ("model", "tokens/s", "tokens", "epochs", "bits per byte", "95% interval", ""):
        table.add_column(name, justify="left" if name in ("model", "") else "right")
    best = plan["chosen"]["model"]
    rows = plan["candidates"]
    middle = next((index for index, row in enumerate(rows) if row["model"] == best), 0)
    for row in rows[max(middle - 4, 0) : middle + 5]:
        note = "chosen" if row["model"] == best else ""
        table.add_row(
            row["model"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tokens'] / 1e6:,.2f}M",
            f"{row['epochs']:.2f}",
            f"{row['predicted_bits_per_byte']:.3f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
            ", ".join(filter(None, [note, "measured" if row["measured"] else ""])),
            style="bold" if note else None,
        )
    return table
