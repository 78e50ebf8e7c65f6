"""Measure the planner's constants on the embedded corpus and write them to src/thalweg/planner/constants.json.

Trains the default arm at several sizes and token budgets (each run annealed to its own end), evaluates each on all
held-out documents and fits L(N, D) = E + A / N^alpha + B / D^beta to the results. Runs are kept under --runs and
reused, so that an interrupted calibration goes on where it was.

    python benchmarks/calibrate.py --runs runs/calibration
    python benchmarks/calibrate.py --sizes 0.2M,0.5M,1M --tokens 0.25M,0.5M,1M --workers 2
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

CONSTANTS = Path(__file__).parent.parent / "src" / "thalweg" / "planner" / "constants.json"


def train(folder: Path, size: str, tokens: str, arm: str, seed: int) -> Path:
    """Train one point of the grid in a process of one thread; a finished run is reused."""
    metrics = folder / "metrics.jsonl"
    if not (metrics.exists() and '"finish"' in metrics.read_text()):
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        command = [sys.executable, "-m", "thalweg", "train", "--model", size, "--budget", f"{tokens} tokens"]
        command += ["--seed", str(seed), "--set", "training.checkpoint_every='1000 min'", "--out", str(folder)]
        if arm:
            command += ["--arm", arm]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
    return folder


def measure(folder: Path) -> dict[str, float]:
    """A finished run as a point: parameters in matrix products, tokens, held-out bits a byte on all documents."""
    kept = folder / "held_out.json"
    if not kept.exists():
        command = [sys.executable, "-m", "thalweg", "eval", str(folder), "--json"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        kept.write_text(done.stdout.strip().splitlines()[-1])
    chosen = json.loads((folder / "plan.json").read_text())["chosen"]
    return {
        "parameters": chosen["parameters"] + chosen["vocab_size"] * chosen["width"],
        "tokens": chosen["tokens"],
        "bits_per_byte": json.loads(kept.read_text())["bits_per_byte"],
    }


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
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at once, one thread each")
    parser.add_argument("--dry-run", action="store_true", help="print the fit, write nothing")
    arguments = parser.parse_args()

    from thalweg.laws.chinchilla import fit
    from thalweg.models.ladder import flops_per_token, nearest

    console = Console(stderr=True)
    grid = []
    for size in arguments.sizes.split(","):
        for tokens in arguments.tokens.split(","):
            count = float(tokens.removesuffix("M")) * 1e6
            flops = flops_per_token(nearest(size), 4096, 256) * count
            if flops <= arguments.most_flops:
                grid.append((flops, size, tokens))
    grid.sort(reverse=True)  # the longest first, so that the workers end together

    def point(entry: tuple[float, str, str]) -> dict[str, float]:
        _, size, tokens = entry
        folder = arguments.runs / f"{size}-{tokens}-{arguments.seed}"
        return measure(train(folder, size, tokens, arguments.arm, arguments.seed))

    with concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool:
        futures = [pool.submit(point, entry) for entry in grid]
        done = concurrent.futures.as_completed(futures)
        points = [future.result() for future in track(done, "calibrating", total=len(grid), console=console)]
    points.sort(key=lambda p: (p["parameters"], p["tokens"]))
    rows = np.array([[p["parameters"], p["tokens"], p["bits_per_byte"]] for p in points])
    fitted = rows[rows[:, 1] >= arguments.least_tokens]
    law = fit(fitted)
    residuals = np.log(fitted[:, 2]) - np.log(law.predict(fitted[:, 0], fitted[:, 1]))
    # Five constants were fitted, which makes the residuals smaller than the errors.
    sigma = math.sqrt(float(residuals @ residuals) / max(len(fitted) - 5, 1))

    print("| parameters | tokens | bits per byte | fitted |\n|---|---|---|---|")
    for n, d, value in rows:
        print(f"| {n / 1e6:.2f}M | {d / 1e6:.2f}M | {value:.4f} | {float(law.predict(n, d)):.4f} |")
    print(f"\n{law.to_dict()}, sigma {sigma:.4f}")
    if arguments.dry_run:
        return
    constants = json.loads(CONSTANTS.read_text())
    constants["source"] = (
        f"benchmarks/calibrate.py, {datetime.date.today()}: {len(fitted)} runs of the default arm on the embedded "
        f"corpus, {arguments.sizes} parameters, {arguments.tokens} tokens, vocabulary 4096"
    )
    constants["law"] = {**law.to_dict(), "sigma": sigma}
    constants["points"] = [[int(n), int(d), round(float(v), 5)] for n, d, v in rows]
    CONSTANTS.write_text(json.dumps(constants, indent=2) + "\n")
    console.print(f"written to {CONSTANTS}")


if __name__ == "__main__":
    main()
