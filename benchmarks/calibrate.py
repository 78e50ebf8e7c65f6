"""Measure the planner's constants on the embedded corpus and write them to src/thalweg/planner/constants.json.

A wind tunnel with a fixed grid: trains the default arm at several sizes and token budgets at the rates of its card
(each run annealed to its own end), evaluates each on all held-out documents and fits L(N, D) = E + A / N^alpha +
B / D^beta. Runs are kept under --runs and found again, so that an interrupted calibration goes on where it was.

    python benchmarks/calibrate.py --runs runs/calibration
    python benchmarks/calibrate.py --sizes 0.2M,0.5M,1M --tokens 0.25M,0.5M,1M --workers 2
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

CONSTANTS = Path(__file__).parent.parent / "src" / "thalweg" / "planner" / "constants.json"


def trained(options: argparse.Namespace) -> tuple[np.ndarray, str, int]:
    """Rows (parameters in matrix products, tokens, bits a byte), the arm in full, and the vocabulary."""
    from thalweg import catalog
    from thalweg.arena.board import Board
    from thalweg.arena.local import Local
    from thalweg.arena.measured import run_of
    from thalweg.arena.proxies import Pace, Proxies, perform
    from thalweg.cache import cache_folder
    from thalweg.planner import rules

    proxies = Proxies("stdlib", options.arm, {}, options.runs)
    proxies.open(quiet=False)
    sizes = {size.name: size for size in proxies.sizes(options.sizes.split(","))}
    lengths = [round(float(tokens.removesuffix("M")) * 1e6) for tokens in options.tokens.split(",")]
    costs = {
        (name, tokens): size.flops(256) * tokens
        for name, size in sizes.items()
        for tokens in lengths
        if size.flops(256) * tokens <= options.most_flops
    }
    recipe, held_out = proxies.recipe(next(iter(sizes)), 1), proxies.store.held_out.token_count
    card = rules.card_rule(catalog.lookup(recipe.optimizer.name))
    units = {key: proxies.unit(*key, float(f"{card.at(sizes[key[0]].width):.3g}"), held_out) for key in costs}
    units = {key: seeded(unit, options.seed) for key, unit in units.items()}
    places = {key: ("stdlib", f"{key[0]} on {key[1]:,} tokens") for key in units}
    execution = Local(cache_folder(), options.workers)
    try:
        execution.prepare(list(units.values()))
        with Board(list(places.values()), {"seeds": 1}) as board:
            outcomes, _ = perform(units, costs, execution, Pace(float("inf")), board, places.__getitem__)
    finally:
        execution.close()
    found = {key: run_of(outcome) for key, outcome in outcomes.items()}
    rows = [
        (sizes[name].law_parameters, run["tokens"], run["bits_per_byte"])
        for (name, _), run in found.items()
        if run["bits_per_byte"] is not None
    ]
    return np.array(sorted(rows)), recipe.arm, proxies.store.vocab_size


def seeded(unit: Any, seed: int) -> Any:
    """The unit with another seed."""
    return dataclasses.replace(unit, recipe=unit.recipe.model_copy(update={"seed": seed}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/calibration"), help="where the runs are kept")
    parser.add_argument("--sizes", default="0.2M,0.5M,1M,2M")
    parser.add_argument("--tokens", default="0.25M,0.5M,1M,2M")
    parser.add_argument("--most-flops", type=float, default=4e13, help="leave out dearer points")
    parser.add_argument(
        "--least-tokens",
        type=float,
        default=4e5,
        help="runs of fewer tokens are shown, not fitted: in so few steps larger models stay behind smaller ones",
    )
    parser.add_argument("--arm", default="", help="the default arm when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="runs at once; measured when left out")
    parser.add_argument("--dry-run", action="store_true", help="print the fit, write nothing")
    options = parser.parse_args()

    from thalweg.laws.chinchilla import fit
    from thalweg.laws.corpus_laws import Laws
    from thalweg.planner import rules

    rows, arm, vocabulary = trained(options)
    fitted = rows[rows[:, 1] >= options.least_tokens]
    law = fit(fitted, refits=200)
    print("| parameters | tokens | bits per byte | fitted |\n|---|---|---|---|")
    for n, d, value in rows:
        print(f"| {n / 1e6:.2f}M | {d / 1e6:.2f}M | {value:.4f} | {float(law.predict(n, d)):.4f} |")
    print(f"\n{law.to_dict()}, sigma {law.sigma:.4f}")
    if options.dry_run:
        return
    source = (
        f"benchmarks/calibrate.py, {datetime.date.today()}: {len(fitted)} runs on the embedded corpus, "
        f"{options.sizes} parameters, {options.tokens} tokens, vocabulary {vocabulary}"
    )
    points = tuple((float(n), float(d), round(float(value), 5)) for n, d, value in rows)
    laws = Laws(law, {}, source, arm, "stdlib", None, None, vocabulary, points)
    CONSTANTS.write_text(json.dumps({**rules.constants(), **laws.to_dict()}, indent=1) + "\n")
    print(f"written to {CONSTANTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
