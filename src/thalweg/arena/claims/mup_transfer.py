"""Is the best learning rate of a narrow model that of a wide one under muP, and not without it?

Llama-shaped models of two layers, width 32 and 256, are trained on bytes of the standard library for 40 steps at eight
rates a factor 2 apart, in both parameterisations, which are the same at width 32. Counted is the factor by which the
best rate moves from the narrow model to the wide one. Full runs, with widths to 512: `benchmarks/mup_transfer.py`.
"""

from __future__ import annotations

from thalweg.arena.claims.finding import Finding
from thalweg.sessions.rate_transfer import best_rate, rate_transfer
from thalweg.sessions.width_series import MUP, PARAMETERISATIONS, STANDARD, WidthSeries

WIDTHS = (32, 256)
RATES = tuple(0.0005 * 2**power for power in range(8))
STEPS = 40
SHIFTS, STAYS = 4.0, 2.0  # fixed before muP's runs were seen


def mup_transfer(
    seed: int = 0, widths: tuple[int, ...] = WIDTHS, rates: tuple[float, ...] = RATES, steps: int = STEPS
) -> Finding:
    """Holds if the best rate moves by a factor of at least 4 without muP and of at most 2 with it."""
    series = WidthSeries(base_width=widths[0], layers=2, context=32, batch=8)
    numbers: dict[str, list[float] | float] = {"widths": [float(w) for w in widths], "rates": list(rates)}
    moved, inside = {}, {}
    for name in PARAMETERISATIONS:
        losses = rate_transfer(series, widths, rates, name, steps=steps, seeds=(seed,))
        numbers |= {f"loss_{name}_{width}": row.tolist() for width, row in zip(widths, losses, strict=True)}
        found = [best_rate(rates, row) for row in losses]
        best = [rate for rate, _ in found]
        moved[name] = max(best) / min(best)
        inside[name] = all(within for _, within in found)
        numbers |= {f"best_rates_{name}": best, f"moved_{name}": moved[name]}
    # A best rate at the end of the grid may lie beyond it: then the shift is at least what was seen.
    known = inside[MUP] and (inside[STANDARD] or moved[STANDARD] >= SHIFTS)
    return Finding(
        numbers=numbers,
        holds=moved[STANDARD] >= SHIFTS and moved[MUP] <= STAYS if known else None,
        sentence=(
            f"From width {widths[0]} to {widths[-1]} the best rate moves by a factor of {moved[MUP]:.1f} under muP and "
            f"of {'' if inside[STANDARD] else 'at least '}{moved[STANDARD]:.1f} with one rate for all weights."
        ),
    )
