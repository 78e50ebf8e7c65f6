"""Bits per byte against bytes on disk: every compression method and some of their compositions on one trained model.

Each is run as `thalweg compress` would, with the same calibration windows, and measured on the same held-out tokens. A
point is what the safetensors files take and what the model they hold costs. The table and the picture are for
docs/guide/compress.md.

Example:
    python benchmarks/compress_tradeoff.py runs/x --out docs/guide/figures/compress.svg --json tradeoff.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from _common import finish, say, table

STEPS = (
    "rtn:bits=8,group=32",
    "rtn:bits=4,group=32",
    "rtn:bits=3,group=32",
    "rtn:bits=2,group=32",
    "gptq:bits=4,group=32",
    "gptq:bits=3,group=32",
    "gptq:bits=2,group=32",
    "foem:bits=3,group=32",
    "awq:bits=4,group=32",
    "awq:bits=3,group=32",
    "awq:bits=2,group=32",
    "rtn:format=nvfp4",
    "rtn:format=mxfp4",
    "magnitude:sparsity=0.6",
    "wanda:sparsity=0.6",
    "sparsegpt:sparsity=0.6",
    "sparsegpt:pattern=2:4",
    "essential_sparsity",
    "llm_drop:what=attention,count=1",
    "llm_drop:what=block,count=1",
    "magnitude:sparsity=0.7+perp:budget=100 steps",
    "sparsegpt:sparsity=0.5+gptq:bits=4,group=32",
    "sparsegpt:sparsity=0.5+gptq:bits=4,group=32+perp:budget=100 steps",
    "llm_drop:what=block,count=1+perp:budget=100 steps+gptq:bits=4,group=32",
)
KINDS = {"quantized": "o", "pruned": "s", "both": "D", "original": "*"}


def kind_of(steps: str) -> str:
    """What has been done, by family."""
    from thalweg import catalog
    from thalweg.arms import parse_steps

    families = {catalog.lookup(step.name).family for step in parse_steps(steps)}
    return "both" if len(families) > 1 else "quantized" if families == {"quantization"} else "pruned"


def drawn(points: list[dict[str, Any]], path: Path) -> None:
    """The picture: a point a composition, named."""
    from matplotlib.figure import Figure

    from thalweg.reports import pictures as house

    figure = Figure(figsize=(house.WIDTH, 5.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for number, (kind, mark) in enumerate(KINDS.items()):
        own = [point for point in points if point["kind"] == kind]
        places = [point["bytes"] / 1e6 for point in own], [point["bits_per_byte"] for point in own]
        axes.plot(*places, mark, color=house.PALETTE[number][0], label=kind, markersize=6)
        for point in own:
            name = point["steps"].replace(",group=32", "").replace("budget=", "")
            axes.annotate(
                house.plain(name), (point["bytes"] / 1e6, point["bits_per_byte"]), fontsize=5.5, xytext=(4, 2),
                textcoords="offset points",
            )  # fmt: skip
    axes.set_xlabel("MB on disk")
    axes.set_ylabel("bits per byte, held out")
    house.dress(axes)
    house.legend(figure, axes)
    house.save(figure, path)


def main() -> None:
    from thalweg.sessions.compress import compress

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--step", action="append", help="may be repeated")
    parser.add_argument("--out", type=Path, help="the picture, .svg or .png")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    points: list[dict[str, Any]] = []
    for steps in options.step or STEPS:
        with tempfile.TemporaryDirectory() as place:
            told = compress(options.run, steps, Path(place) / "out", windows=options.windows, tokens=options.tokens)
        if not points:
            points.append(point(told, "before", "the model", "original"))
        points.append(point(told, "after", steps, kind_of(steps)) | {"seconds": told["seconds"]})
        say(f"{steps}: {points[-1]['bits_per_byte']:.4f} bits per byte in {points[-1]['bytes'] / 1e6:.2f} MB")
    if options.out is not None:
        drawn(points, options.out)
    lines = [
        [
            f"`{one['steps']}`",
            f"{one['bytes'] / 1e6:.2f}",
            f"{one['bits_per_byte']:.4f}",
            "" if one["agreement"] is None else f"{one['agreement']:.1%}",
            f"{one['zeros']:.0%}",
            f"{one['bits_per_weight']:.2f}",
        ]
        for one in points
    ]
    header = ["steps", "MB", "bits per byte", "same next token", "zeros in blocks", "bits a weight of the blocks"]
    kept = {"windows": options.windows, "tokens": options.tokens}
    finish(table(header, lines), {"options": kept, "points": points}, options.json)


def point(told: dict[str, Any], side: str, steps: str, kind: str) -> dict[str, Any]:
    found = told[side]
    return {
        "steps": steps,
        "kind": kind,
        "bytes": found["disk_bytes"],
        "bits_per_byte": found["bits_per_byte"],
        "low": found["low"],
        "high": found["high"],
        "agreement": found.get("agreement"),
        "zeros": 1 - found["block_non_zero"] / found["block_weights"],
        "bits_per_weight": found["bits_per_weight"],
    }


if __name__ == "__main__":
    main()
