"""Does the best learning rate stay where it is from width 64 to 512, with muP and without?

Llama-shaped models of four layers are trained on bytes of the standard library at rates a factor 2 apart, at every
width, in the standard parameterisation (one rate for all weights) and in muP, which are the same at the smallest width.
Goals: the best rate moves by a factor of at least 4 in the first and of at most 2 in the second; and the largest
eigenvalue of the Hessian on a fixed batch, times the rates and the preconditioner, follows the same course at every
width under muP.

Examples:
    python benchmarks/mup_transfer.py --json results/mup_transfer.json
    python benchmarks/mup_transfer.py --widths 64,128,256 --steps 60 --seeds 1 --rates 2e-3,4e-3,8e-3,1.6e-2,3.2e-2
    python benchmarks/mup_transfer.py --optimizer muon --sharpness 5
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from _common import finish, say, table, verdict

RATES = ",".join(f"{0.0005 * 2**power:g}" for power in range(9))
SHIFTS, STAYS = 4.0, 2.0


def sharpness_on_the_way(series: Any, width: int, name: str, rate: float, steps: int, times: int) -> list[list[float]]:
    """Rows (step, sharpness of the preconditioned Hessian): `times` of them over a run at a constant rate."""
    from thalweg.models.sharpness import sharpness
    from thalweg.sessions.width_series import set_rates, step

    model, optimizer = series.model(width, name, 0, rate)
    set_rates(optimizer, rate)
    fixed, rows, start = series.held_out(8), [], None
    marks = {round(steps * (place + 1) / times) for place in range(times)}
    for taken, batch in zip(range(1, steps + 1), series.batches(0), strict=False):
        step(model, optimizer, batch)
        if taken in marks:
            found = sharpness(model, fixed, preconditioner(model, optimizer), start=start, tolerance=0.01)
            start = found.vectors[0]
            rows.append([float(taken), found.values[0]])
    return rows


def preconditioner(model: Any, optimizer: Any) -> list[torch.Tensor]:
    """Adam's diagonal: rate / (root of the second moment, corrected, + eps), a tensor a parameter."""
    by_parameter = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            moment = state["exp_avg_sq"] / (1.0 - group["betas"][1] ** float(state["step"]))
            by_parameter[id(parameter)] = group["lr"] / (moment.sqrt() + group["eps"])
    return [by_parameter[id(parameter)] for parameter in model.parameters()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="64,128,256,512", help="the smallest is the base (%(default)s)")
    parser.add_argument("--rates", default=RATES, help="at the base width (%(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--optimizer", default="adamw", help="(%(default)s)")
    parser.add_argument("--sharpness", type=int, default=0, help="measurements a run; adamw only (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()

    from thalweg.sessions.rate_transfer import best_rate, rate_transfer
    from thalweg.sessions.width_series import PARAMETERISATIONS, STANDARD, WidthSeries

    widths = sorted({int(width) for width in options.widths.split(",")})
    rates = sorted({float(rate) for rate in options.rates.split(",")})
    series = WidthSeries(options.optimizer, base_width=widths[0])
    numbers: dict[str, Any] = {"widths": widths, "rates": rates, "steps": options.steps, "seeds": options.seeds}
    rows = []
    for name in PARAMETERISATIONS:
        losses = rate_transfer(series, widths, rates, name, steps=options.steps, seeds=range(options.seeds), tell=say)
        found = [best_rate(rates, row) for row in losses]
        best = [rate for rate, _ in found]
        moved = max(best) / min(best)
        for width, row, (rate, inside) in zip(widths, losses, found, strict=True):
            rows.append([f"{name}, width {width}", f"{rate:.4f}{'' if inside else ' (end)'}", f"{min(row):.4f}", ""])
        goal = f"at least {SHIFTS:g}" if name == STANDARD else f"at most {STAYS:g}"
        met = verdict(moved, SHIFTS) if name == STANDARD else verdict(moved, STAYS, at_least=False)
        if not all(inside for _, inside in found) and not (name == STANDARD and moved >= SHIFTS):
            met = "open, a best rate lies at an end of the grid"
        rows.append([f"{name}: the best rate moves by", f"{moved:.2f}", "", f"{goal}: {met}"])
        numbers[name] = {"losses": losses.tolist(), "best_rates": best, "moved": moved}
        if options.sharpness:
            numbers[name]["sharpness"] = {
                width: sharpness_on_the_way(series, width, name, best[0], options.steps, options.sharpness)
                for width in widths
            }
    text = table(["parameterisation", "best rate", "its loss, nats a byte", "goal"], rows)
    if options.sharpness:
        told = [
            [f"{name}, width {width}", *(f"{value:.1f}" for _, value in numbers[name]["sharpness"][width])]
            for name in PARAMETERISATIONS
            for width in widths
        ]
        marks = [f"step {int(mark)}" for mark, _ in numbers[STANDARD]["sharpness"][widths[0]]]
        text += "\n\n" + table(["sharpness, rates and preconditioner in it (Adam's limit: 38)", *marks], told)
    finish(text, numbers, options.json)


if __name__ == "__main__":
    main()
