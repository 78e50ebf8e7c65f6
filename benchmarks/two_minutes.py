"""What two minutes buy: bits per byte of `thalweg train --budget 2min` and of what people do today, at equal time.

Contestants, each a command of its own on the quiet machine, one after the other, in another order in every repeat:

- Thalweg: exactly `thalweg train --budget 2min --seed N`. All of it counts: planning, evaluations, checkpoint, report.
- nanoGPT: its published small CPU settings restated (see _peers.py), characters being bytes. Its 2000 steps are a
  guess: when they are done it goes on at its lowest rate until the time is over, as nanoGPT does; if the time is over
  first, it ends there.
- Hugging Face Trainer: its defaults (batch 8, rate 5e-5, linear over 3 epochs, float32) on the very model, tokenizer
  and window length that Thalweg chose in that repeat, ended by a callback when the time is over.
- With --extra: the same Trainer with bf16=True and rate 1e-3, for whoever finds the defaults too easy to beat.

A peer's time runs from the start of its process to the end of its training; saving comes free. Token stores and byte
text are made before. The final models are evaluated afterwards on all held-out documents, each with its own context:
bits per byte = total nats / ln 2 / total bytes, the closing of documents being charged to everyone.
Goal: Thalweg at least 8% below the better of the two peers. Its time, outside seen, is within 3% of the budget.

Examples:
    python benchmarks/two_minutes.py --json results/two_minutes.json
    python benchmarks/two_minutes.py --extra --repeats 1
    python benchmarks/two_minutes.py --seconds 25 --repeats 1 --documents 4
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import finish, say, spread, table, verdict

GOAL = 0.08
WITHIN = 0.03
LABELS = {
    "thalweg": "Thalweg",
    "nanogpt": "nanoGPT settings",
    "hugging_face": "HF Trainer, defaults",
    "hugging_face_extra": "HF Trainer, bf16, lr 1e-3",
}
EXTRA = {"learning_rate": 1e-3, "bf16": True}


def run_thalweg(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """The user's command, timed from outside."""
    out = folder / "run"
    command = [sys.executable, "-m", "thalweg", "train", "--budget", f"{options.seconds:g}s"]
    command += ["--seed", str(seed), "--out", str(out)]
    began = time.monotonic()
    with (folder / "stderr.txt").open("w") as log:
        code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=log).returncode
    wall = time.monotonic() - began
    if code:
        raise SystemExit(f"thalweg train ended with {code}:\n{(folder / 'stderr.txt').read_text()[-3000:]}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    done = next(line for line in lines if line["event"] == "finish")
    chosen = json.loads((out / "plan.json").read_text())["chosen"]
    kept = ("model", "context", "batch_size", "precision", "peak_lr", "tie", "predicted_bits_per_byte")
    return {
        "wall": wall,
        "own_seconds": done["seconds"],
        "steps": done["step"],
        "tokens": done["tokens"],
        "chosen": {name: chosen[name] for name in kept},
    }


def run_peer(said: dict[str, Any], seconds: float, folder: Path) -> dict[str, Any]:
    """A peer in a process of its own, whose time has begun before it starts."""
    began = time.monotonic()
    said = {**said, "deadline": began + seconds, "folder": str(folder)}
    with (folder / "stderr.txt").open("w") as log:
        code = subprocess.run([sys.executable, __file__, "--peer", json.dumps(said)], stdout=log, stderr=log).returncode
    if code:
        raise SystemExit(f"{said['loop']} ended with {code}:\n{(folder / 'stderr.txt').read_text()[-3000:]}")
    result = json.loads((folder / "result.json").read_text())
    return {"wall": result.pop("ended") - began, **result}


def order(repeat: int, extra: bool) -> list[str]:
    """Who goes when: another order every time, Thalweg before the Trainer, which takes over its model."""
    first = [
        ["thalweg", "hugging_face", "nanogpt"],
        ["nanogpt", "thalweg", "hugging_face"],
        ["thalweg", "nanogpt", "hugging_face"],
    ][repeat % 3]
    return first + ["hugging_face_extra"] * extra


def repeat_once(options: argparse.Namespace, repeat: int, store: Any, text: Path, held_out: Any) -> dict[str, Any]:
    """Train every contestant once with this repeat's seed and evaluate what came out."""
    seed, found = options.seed + repeat, {}
    with tempfile.TemporaryDirectory(prefix="thalweg-benchmark-") as name:
        folders = {who: Path(name) / who for who in order(repeat, options.extra)}
        for who, folder in folders.items():
            folder.mkdir()
            say(f"repeat {repeat + 1} of {options.repeats}: {LABELS[who]}, {options.seconds:g} s")
            if who == "thalweg":
                found[who] = run_thalweg(options, seed, folder)
                continue
            said: dict[str, Any] = {"loop": "nanogpt", "seed": seed, "bytes": str(text)}
            if who != "nanogpt":
                chosen = {name: found["thalweg"]["chosen"][name] for name in ("model", "context", "tie")}
                said |= {"loop": "hugging_face", "store": str(store.folder), **chosen}
                said["arguments"] = EXTRA if who == "hugging_face_extra" else {}
            found[who] = run_peer(said, options.seconds, folder)
        for who, folder in folders.items():
            chosen = found["thalweg"]["chosen"]
            found[who] |= evaluated(who, folder, store, held_out, chosen["context"], options.documents)
            one = found[who]
            say(f"  {LABELS[who]}: {one['bits_per_byte']:.4f} bits per byte, {one['steps']} steps, {one['wall']:.1f} s")
    return {"seed": seed, "contestants": found}


def evaluated(who: str, folder: Path, store: Any, held_out: Any, context: int, documents: int | None) -> dict[str, Any]:
    """Bits per byte of a trained model on all (or the first) held-out documents, in float32."""
    from _peers import evaluate_nano

    from thalweg.models.evaluate import evaluate
    from thalweg.models.folder import load

    split = held_out if who == "nanogpt" else store.held_out
    offsets, sizes = split.documents()
    most = int(offsets[: (documents or len(sizes)) + 1][-1])
    if who == "nanogpt":
        result = evaluate_nano(folder, held_out, most)
    else:
        model, _ = load(folder / "run" / "checkpoints" / "latest" if who == "thalweg" else folder)
        result = evaluate(model, split, context, max(8192 // context, 1), max_tokens=most)
    return {
        "bits_per_byte": result.bits_per_byte,
        "low": result.low,
        "high": result.high,
        "documents": result.documents,
    }


def report(options: argparse.Namespace, repeats: list[dict[str, Any]]) -> str:
    """The table and the two sentences beneath it."""
    rows = []
    for who in order(0, options.extra):
        mine = [one["contestants"][who] for one in repeats]
        lower = [
            1 - one["contestants"]["thalweg"]["bits_per_byte"] / m["bits_per_byte"]
            for one, m in zip(repeats, mine, strict=True)
        ]
        rows.append(
            [
                LABELS[who],
                spread([m["bits_per_byte"] for m in mine], ".4f"),
                "" if who == "thalweg" else spread([100 * value for value in lower], ".1f") + " %",
                f"{statistics.median(m['steps'] for m in mine):,.0f}",
                f"{statistics.median(m['tokens'] for m in mine):,.0f}",
                spread([m["wall"] for m in mine], ".1f"),
            ]
        )
    header = ["contestant", "bits per byte", "Thalweg is lower by", "steps", "tokens or bytes", "seconds"]
    gains = gains_of(repeats)
    away = [one["contestants"]["thalweg"]["wall"] / options.seconds - 1 for one in repeats]
    worst = max(away, key=abs)
    return "\n".join(
        [
            f"{options.repeats} repeats of {options.seconds:g} s; median (least to largest)\n",
            table(header, rows),
            f"\nThalweg below the better of nanoGPT and HF defaults: {spread([100 * g for g in gains], '.1f')} %"
            f" (goal {GOAL:.0%}: {verdict(statistics.median(gains), GOAL)})",
            f"`thalweg train` against its budget, whole command: {spread([100 * a for a in away], '+.1f')} %"
            f" (goal within {WITHIN:.0%}: {verdict(abs(worst), WITHIN, at_least=False)})",
        ]
    )


def gains_of(repeats: list[dict[str, Any]]) -> list[float]:
    """By how much Thalweg is below the better of the two peers, in every repeat."""
    bits = [{who: one["bits_per_byte"] for who, one in repeat["contestants"].items()} for repeat in repeats]
    return [1 - one["thalweg"] / min(one["nanogpt"], one["hugging_face"]) for one in bits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="time for every contestant (120)")
    parser.add_argument("--repeats", type=int, default=3, help="(3)")
    parser.add_argument("--seed", type=int, default=0, help="of the first repeat; each further one adds 1 (0)")
    parser.add_argument("--extra", action="store_true", help="also the Trainer with bf16 and rate 1e-3")
    parser.add_argument("--documents", type=int, help="evaluate on so many held-out documents only (all)")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        from _peers import run

        run(json.loads(options.peer))
        return
    from _peers import ByteSplit, documents_of

    from thalweg.data import prepare
    from thalweg.planner.profile import profile

    store = prepare("stdlib")
    profile()  # measured once a machine; after the first run it is cached for every user
    with tempfile.TemporaryDirectory(prefix="thalweg-benchmark-") as name:
        text = Path(name) / "train.bytes"
        ByteSplit(documents_of(store, store.train)).text.tofile(text)
        held_out = ByteSplit(documents_of(store, store.held_out))
        repeats = [repeat_once(options, number, store, text, held_out) for number in range(options.repeats)]
    said = {"seconds": options.seconds, "seed": options.seed, "held_out_bytes": store.held_out.byte_count}
    finish(report(options, repeats), {"options": said, "repeats": repeats, "gains": gains_of(repeats)}, options.json)


if __name__ == "__main__":
    main()
