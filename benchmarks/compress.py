"""Compression against llm-compressor and gptqmodel: quality at equal bits, time, and peak memory.

Both sides compress the same model with the same calibration windows, each in a process of its own with the same
number of threads; what they leave is evaluated by the same code on the same held-out text. Quality is bits per byte,
with the 95% interval over documents; time is that of the compression alone. Peak memory is the process's, libraries,
model and compression; how much of it came with the compression, beyond the peak of what was before, stands beside it.

Goals, against each of them: never worse in quality beyond the interval; at least as fast; peak memory at most theirs.
They are no dependencies of Thalweg, and want versions of their own: give the interpreters of environments that have
them. The time of gptqmodel has the packing of weights in it.

Examples:
    python benchmarks/compress.py runs/x --peer llmcompressor=/path/to/venv/bin/python --peer gptqmodel=/another/python
    python benchmarks/compress.py runs/x --peer llmcompressor=... --step gptq:bits=3,group=32 --windows 32
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _common import finish, say, table, verdict

STEPS = (
    "gptq:bits=4,group=32",
    "gptq:bits=3,group=0",
    "awq:bits=4,group=32",
    "sparsegpt:sparsity=0.5",
    "wanda:sparsity=0.5",
)
WORKER = Path(__file__).resolve().with_name("_compress_worker.py")


def compressed(python: str, who: str, arguments: list[str], out: Path) -> dict[str, Any]:
    """One compression in a process of its own, in a folder of its own, since peers write logs; what it told."""
    # Looked up from here; links are not followed, which would lead out of a virtual environment.
    command = [
        str(Path(shutil.which(python) or python).absolute()),
        str(WORKER),
        who,
        *arguments[:3],
        str(out),
        arguments[3],
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=out.parent)
    return json.loads(out.with_suffix(".json").read_text())


def measured(folder: Path, weights: Path, split: Any, context: int, tokens: int) -> Any:
    """The evaluation of a model with these weights."""
    from safetensors.torch import load_file

    from thalweg.models.evaluate import evaluate
    from thalweg.models.folder import load

    model, _ = load(folder)
    found = load_file(weights)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(found[name])
    return evaluate(model.eval(), split, context=context, batch_size=16, max_tokens=tokens)


def main() -> None:
    from thalweg.data import WindowSampler
    from thalweg.models.evaluate import evaluate
    from thalweg.models.folder import load
    from thalweg.sessions.compress_source import texts
    from thalweg.sessions.evaluate import model_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run folder or a Hugging Face model folder")
    parser.add_argument("--peer", action="append", default=[], help="llmcompressor=PYTHON or gptqmodel=PYTHON")
    parser.add_argument("--step", action="append", help="may be repeated")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=60_000, help="held-out tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="timings; the least counts")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    source = model_folder(options.model).resolve()
    store, split = texts(Path(options.model), source, None)
    batch = WindowSampler(store.train, options.context, options.windows, 0).batch(0)["input_ids"]
    model = load(source)[0].eval()
    base = evaluate(model, split, context=options.context, batch_size=16, max_tokens=options.tokens)
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {base.bits_per_byte:.4f} bits per byte")
    sides = {"thalweg": sys.executable} | dict(peer.split("=", 1) for peer in options.peer)
    lines, numbers = [], {}
    with tempfile.TemporaryDirectory() as place:
        windows = Path(place) / "windows.npy"
        np.save(windows, batch.numpy())
        for step in options.step or STEPS:
            found = {}
            for who, python in sides.items():
                out = Path(place) / "weights.safetensors"
                arguments = [str(source), step, str(windows), str(options.threads)]
                try:
                    told = [compressed(python, who, arguments, out) for _ in range(options.rounds)]
                except subprocess.CalledProcessError as error:
                    if who == "thalweg":
                        raise
                    say(f"{step} of {who} cannot run here: {error.stderr.decode().strip().splitlines()[-1]}")
                    continue
                best = {key: min(one[key] for one in told) for key in told[0]}
                found[who] = best | vars(measured(source, out, split, options.context, options.tokens))
                say(f"{step} of {who}: {found[who]['bits_per_byte']:.4f}, {best['seconds']:.2f} s")
            numbers[step] = found
            lines += rows(step, found)
    header = ["step", "of", "bits per byte", "95% interval", "seconds", "peak memory, MB", "of it new", "goals"]
    text = f"Before: {base.bits_per_byte:.4f} bits per byte.\n\n{table(header, lines)}"
    kept = ("windows", "context", "tokens", "threads", "rounds")
    finish(text, {"options": {key: getattr(options, key) for key in kept}, "steps": numbers}, options.json)


def rows(step: str, found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Ours, then each peer with what became of the goals against it."""
    lines = []
    for who, one in found.items():
        interval = f"{one['low']:.4f} to {one['high']:.4f}"
        memory = f"{one['peak_memory'] / 1e6:.0f}", f"{one['more_memory'] / 1e6:.0f}"
        values = (f"{one['bits_per_byte']:.4f}", interval, f"{one['seconds']:.2f}", *memory)
        lines.append([step, who, *values, "" if who == "thalweg" else goals(found["thalweg"], one)])
    return lines


def goals(own: dict[str, Any], peer: dict[str, Any]) -> str:
    beyond = (own["bits_per_byte"] - peer["bits_per_byte"]) / max(peer["high"] - peer["bits_per_byte"], 1e-9)
    share = own["seconds"] / peer["seconds"]
    return "; ".join(
        [
            f"quality {verdict(beyond, 1.0, at_least=False)}",
            f"time {share:.2f}: {verdict(share, 1.0, at_least=False)}",
            f"memory {verdict(own['peak_memory'], peer['peak_memory'], at_least=False)}",
        ]
    )


if __name__ == "__main__":
    main()
