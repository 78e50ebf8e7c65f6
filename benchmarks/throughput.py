"""How fast Thalweg's loop is: beside a bare PyTorch loop, beside the Hugging Face Trainer, and beside the machine.

Three parts, each of contestants in processes of their own that take turns within every round:

(a) tokens/s of the Trainer as `thalweg train` assembles it (metrics, TensorBoard, live line on a terminal, safeguard)
    over a bare loop of the same model, batch, micro-batch, precision, optimizer, clipping, attention, chunked loss and
    allocator setting. Evaluation and checkpoints are far away in both. Goal: at least 0.98.
(b) Thalweg with its defaults over `transformers.Trainer` with its defaults (float32, AdamW, its data loader; saving
    and reporting off): same model, same windows, same windows a step. Goal: at least 1.2.
(c) model FLOPs utilisation: useful FLOPs a second (`models.ladder.flops_per_token`) over the best matrix product,
    measured in the same process right before and after the steps. Everyone takes AdamW, whose arithmetic is next to
    nothing; a last row has Thalweg's default optimizer, whose own matrix products are not the model's and count as
    loss here. Goal: at least 0.65.

Ratios are medians over rounds, with the least and the largest. Absolute speeds are of this machine in this hour.

Examples:
    python benchmarks/throughput.py --compile --json results/throughput.json
    python benchmarks/throughput.py --parts b --rounds 5 --steps 30
    python benchmarks/throughput.py --model 0.2M --context 32 --batch-size 8 --tokenizer bpe:512 --rounds 2 --steps 4
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _common import finish, say, spread, table, verdict
from _loops import serve

GOALS = {"a": 0.98, "b": 1.2, "c": 0.65}
TURN = 2  # steps a turn in (a) and (b): short beside the drift of a machine's speed


class Contestant:
    """A running contestant; `ask` lets it take its steps."""

    def __init__(self, name: str, said: dict[str, Any]) -> None:
        self.name, self.said = name, said
        self.log = Path(said["folder"]) / "stderr.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--contestant", json.dumps(said)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.facts = self._answer()

    def ask(self, steps: int, peak: bool = False) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"steps": steps, "peak": peak}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate()


def measure(contestants: dict[str, dict[str, Any]], options: argparse.Namespace, *, whole: bool) -> dict[str, Any]:
    """Start the contestants and let them take turns: {name: {"facts", "rounds": [{"seconds", "peaks"}]}}.

    whole: one turn of all steps a round, with the peak measured around it; else turns of `TURN` steps.
    """
    turn = options.steps if whole else min(TURN, options.steps)
    with ExitStack() as stack:
        running = []
        for name, special in contestants.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="thalweg-benchmark-"))
            contestant = Contestant(name, {**said_by(options), **special, "folder": folder})
            stack.callback(contestant.close)
            began = time.perf_counter()
            contestant.ask(options.warmup)
            say(f"  {name}: {options.warmup} steps to warm up took {time.perf_counter() - began:.1f} s")
            running.append(contestant)
        results: dict[str, Any] = {c.name: {"facts": c.facts, "rounds": []} for c in running}
        for number in range(options.rounds):
            totals = {c.name: {"seconds": 0.0, "peaks": {}} for c in running}
            for position, start in enumerate(range(0, options.steps, turn)):
                first = (number + position) % len(running)
                for contestant in running[first:] + running[:first]:
                    answer = contestant.ask(min(turn, options.steps - start), peak=whole)
                    totals[contestant.name]["seconds"] += answer["seconds"]
                    totals[contestant.name]["peaks"] = answer["peaks"]
            for name, total in totals.items():
                total["tokens_per_second"] = options.steps * options.batch_size * options.context / total["seconds"]
                results[name]["rounds"].append(total)
            speeds = ", ".join(f"{name} {total['tokens_per_second']:,.0f}" for name, total in totals.items())
            say(f"  round {number + 1} of {options.rounds}, tokens/s: {speeds}")
    return results


def said_by(options: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "context", "batch_size", "arm", "corpus", "tokenizer", "precision")
    return {name: getattr(options, name) for name in names} | {"compile": False}


def speeds_of(result: dict[str, Any]) -> list[float]:
    return [one["tokens_per_second"] for one in result["rounds"]]


def ratios(over: dict[str, Any], under: dict[str, Any]) -> list[float]:
    return [one / other for one, other in zip(speeds_of(over), speeds_of(under), strict=True)]


def against_bare(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Part (a)."""
    rows, numbers = [], {}
    for compiled in (False, True) if options.compile else (False,):
        kind = "compiled" if compiled else "eager"
        say(f"(a) Thalweg's loop and a bare loop, {kind}")
        both = {name: {"loop": name, "compile": compiled} for name in ("bare", "thalweg")}
        found = numbers[kind] = measure(both, options, whole=False)
        found["ratios"] = ratios(found["thalweg"], found["bare"])
        medians = [f"{statistics.median(speeds_of(found[name])):,.0f}" for name in both]
        label = f"{kind}, {found['thalweg']['facts']['precision']}"
        met = verdict(statistics.median(found["ratios"]), GOALS["a"])
        rows.append([label, *medians, spread(found["ratios"]), f"{GOALS['a']}: {met}"])
    header = ["(a) same arithmetic", "bare tokens/s", "Thalweg tokens/s", "Thalweg over bare", "goal"]
    return table(header, rows), numbers


def against_hugging_face(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Part (b); beside the two defaults, what is left when each takes the other's precision and optimizer."""
    say("(b) Thalweg and the Hugging Face Trainer")
    peer = "HF Trainer, defaults"
    contestants = {
        peer: {"loop": "hugging_face", "precision": "float32"},
        "HF Trainer, bf16=True": {"loop": "hugging_face", "precision": "bfloat16"},
        "Thalweg, adamw, float32": {"loop": "thalweg", "precision": "float32", "arm": "adamw"},
        "Thalweg, defaults": {"loop": "thalweg", "precision": "auto", "arm": ""},
    }
    found = measure(contestants, options, whole=False)
    rows = []
    for name in contestants:
        found[name]["ratios"] = ratios(found[name], found[peer])
        met = verdict(statistics.median(found[name]["ratios"]), GOALS["b"])
        goal = f"{GOALS['b']}: {met}" if name == "Thalweg, defaults" else ""
        facts = found[name]["facts"]
        speed = f"{statistics.median(speeds_of(found[name])):,.0f}"
        rows.append([name, facts["precision"], facts["micro_batch"], speed, spread(found[name]["ratios"], ".2f"), goal])
    return table(["(b) loop", "precision", "micro-batch", "tokens/s", "over HF defaults", "goal"], rows), found


def utilisation(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Part (c)."""
    rows, numbers = [], {}
    for precision in ("float32", "bfloat16"):
        say(f"(c) utilisation, {precision}")
        contestants = {
            f"{loop}, {'compiled' if compiled else 'eager'}": {
                "loop": loop,
                "compile": compiled,
                "precision": precision,
                "arm": "adamw",
            }
            for compiled in ((False, True) if options.compile else (False,))
            for loop in ("plain", "thalweg")
        }
        contestants["thalweg's default arm, eager"] = {"loop": "thalweg", "precision": precision, "arm": ""}
        found = numbers[precision] = measure(contestants, options, whole=True)
        for name, result in found.items():
            of = {
                peak: [
                    one["tokens_per_second"] * result["facts"]["flops_per_token"] / one["peaks"][peak]
                    for one in result["rounds"]
                ]
                for peak in ("float32", "bfloat16")
            }
            result["utilisation"] = of
            met = verdict(statistics.median(of[precision]), GOALS["c"])
            peak = statistics.median(one["peaks"][precision] for one in result["rounds"]) / 1e9
            speed = f"{statistics.median(speeds_of(result)):,.0f}"
            single = spread(of["float32"], ".2f")
            goal = f"{GOALS['c']}: {met}" if name.startswith("thalweg,") else ""
            rows.append([f"{name}, {precision}", speed, f"{peak:,.0f}", spread(of[precision], ".2f"), single, goal])
    header = ["(c) loop", "tokens/s", "own peak, GFLOP/s", "MFU of own peak", "of the float32 peak", "goal"]
    return table(header, rows), numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="5M", help="rung of the ladder (5M)")
    parser.add_argument("--context", type=int, default=256, help="tokens a window (256)")
    parser.add_argument("--batch-size", type=int, default=16, help="windows a step, for everyone (16)")
    parser.add_argument("--arm", default="", help='Thalweg\'s choices in (a), as "adamw+linear" (its defaults)')
    parser.add_argument("--precision", default="auto", help="of (a): auto, float32 or bfloat16 (auto)")
    parser.add_argument("--compile", action="store_true", help="in (a) and (c), compiled loops, too")
    parser.add_argument("--corpus", default="stdlib", help="where the windows come from (stdlib)")
    parser.add_argument("--tokenizer", default="bpe:4096", help="(bpe:4096)")
    parser.add_argument("--rounds", type=int, default=5, help="(5)")
    parser.add_argument("--steps", type=int, default=10, help="steps a round, for each contestant (10)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the first round (3)")
    parser.add_argument("--parts", default="a,b,c", help="which of a, b, c (a,b,c)")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        serve(json.loads(options.contestant))
        return
    parts = {"a": against_bare, "b": against_hugging_face, "c": utilisation}
    wanted = [part.strip() for part in options.parts.split(",")]
    if not set(wanted) <= set(parts):
        parser.error(f"--parts takes a, b and c, not {options.parts!r}")
    done = {part: parts[part](options) for part in wanted}
    setting = f"{options.model}, {options.batch_size} windows of {options.context} tokens a step"
    setting += f", {options.rounds} rounds of {options.steps} steps; median (least to largest)"
    text = "\n\n".join([setting, *(text for text, _ in done.values())])
    said = {name: value for name, value in vars(options).items() if name not in ("json", "contestant")}
    finish(text, {"options": said, **{part: numbers for part, (_, numbers) in done.items()}}, options.json)


if __name__ == "__main__":
    main()
