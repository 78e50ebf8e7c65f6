"""What a step of an optimizer costs: ours, torch's, and pytorch_optimizer's of the same method, against fused AdamW.

Each contestant steps a Llama of the ladder with fixed random gradients. In a round fused AdamW and all implementations
of a method take their turns, so that a machine which slows down slows all; figures are medians over rounds. A method
that renews something every so many steps (a subspace, say) is timed over the whole interval, where it fits into
`--gap` steps, and its mean counts. Curvature that another gradient pays for (Sophia's) is not in a step.

Columns: time over fused AdamW's; bytes of state a parameter; bytes that the operations of a step read and write, a
parameter (fused AdamW: 32, counted operator by operator as torch runs them); time a byte moved over fused AdamW's.
Goals: ours at least as fast as every other implementation of its method; elementwise methods within 1.25 of fused
AdamW's time a byte moved. pytorch_optimizer is no dependency: `pip install pytorch_optimizer` to have its rows.

Examples:
    python benchmarks/optimizers.py --json results/optimizers.json
    python benchmarks/optimizers.py --model 5M --method lamb --method muon --rounds 20
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _common import finish, say, spread, table, verdict
from _optimizer_contestants import Contestant, Groups, contestants, fused
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VOCABULARY, CONTEXT = 4096, 256
BYTE_GOAL, FASTEST_GOAL = 1.25, 1.0
ELEMENTWISE = ("adamw", "lars", "lamb", "sophia")


class Moved(TorchDispatchMode):
    """Counts the bytes that operators read and write: every tensor that goes in, and every one that is written."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip([argument.name for argument in func._schema.arguments], args, strict=False)) | (kwargs or {})
        found = func(*args, **(kwargs or {}))
        if func.is_view:
            return found  # another look at the same bytes
        written = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
        for name, value in given.items():
            self.bytes += size(value) * (2 if name in written else 1)
        # What comes back from an operator in place went in already.
        self.bytes += 0 if written else size(found)
        return found


def size(values: Any) -> int:
    """Bytes of all tensors in there."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, torch.Tensor))


class Workbench:
    """A model with gradients, for one size."""

    def __init__(self, name: str, seed: int) -> None:
        from thalweg.models.ladder import build, nearest
        from thalweg.models.parameter_groups import parameter_groups

        self.model = build(nearest(name), VOCABULARY, CONTEXT, seed)
        self.groups = parameter_groups(self.model)
        self.parameters = list(self.model.parameters())
        self.count = sum(p.numel() for p in self.parameters)
        generator = torch.Generator().manual_seed(seed)
        self.gradients = [1e-3 * torch.randn(p.shape, generator=generator) for p in self.parameters]
        self.start = [p.detach().clone() for p in self.parameters]
        self.reference = self.fresh(fused)
        self.reference.step()
        self.reference_moved = moved_by(self.reference) / self.count

    def fresh(self, build: Callable[[Groups], Any]) -> Any:
        """An optimizer of its own on the weights as they were at first."""
        for p, value, gradient in zip(self.parameters, self.start, self.gradients, strict=True):
            p.data.copy_(value)
            p.grad = gradient.clone()
        return build([dict(group) for group in self.groups])

    def timed(self, optimizer: Any, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.step()
        return (time.perf_counter() - began) / steps

    def measured(self, rivals: list[Contestant], rounds: int, longest: int) -> list[dict[str, Any]]:
        """All implementations of a method, in turns."""
        optimizers = [self.fresh(rival.build) for rival in rivals]
        for optimizer in optimizers:
            optimizer.step()
        gap = rivals[0].gap if rivals[0].gap <= longest else 1
        # Renewed at steps 0, gap, 2 gap and so on: any `gap` steps in a row hold one renewal.
        rounds = rounds if gap == 1 else max(rounds // 10, 2)
        times = [
            [self.timed(self.reference, 3), *(self.timed(optimizer, gap) for optimizer in optimizers)]
            for _ in range(rounds)
        ]
        middle = [statistics.median(own) for own in zip(*times, strict=True)][1:]
        found = []
        for place, (rival, optimizer) in enumerate(zip(rivals, optimizers, strict=True)):
            found.append(
                {
                    "method": rival.method,
                    "who": rival.who,
                    "milliseconds": 1e3 * middle[place],
                    "ratios": [taken[1 + place] / taken[0] for taken in times],
                    "over_best": middle[place] / min([*middle[:place], *middle[place + 1 :]], default=float("nan")),
                    "state": sum(size(values) for values in optimizer.state.values()) / self.count,
                    "moved": moved_by(optimizer) / self.count,
                }
            )
            found[-1]["a_byte"] = statistics.median(found[-1]["ratios"]) * self.reference_moved / found[-1]["moved"]
        return found


def moved_by(optimizer: Any) -> int:
    with Moved() as moved:
        optimizer.step()
    return moved.bytes


def rows(found: list[dict[str, Any]]) -> Iterator[list[str]]:
    """A line for each contestant, with the goals where they apply."""
    for one in found:
        goals = []
        if one["who"] == "thalweg" and one["over_best"] == one["over_best"]:
            goals.append(
                f"{one['over_best']:.2f} of the next: {verdict(one['over_best'], FASTEST_GOAL, at_least=False)}"
            )
        if one["who"] == "thalweg" and one["method"] in ELEMENTWISE:
            goals.append(f"a byte: {verdict(one['a_byte'], BYTE_GOAL, at_least=False)}")
        yield [
            one["method"],
            one["who"],
            f"{one['milliseconds']:.1f}",
            spread(one["ratios"], ".2f"),
            f"{one['state']:.2f}",
            f"{one['moved']:.0f}",
            f"{one['a_byte']:.2f}",
            "; ".join(goals),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="size; may be repeated (5M and 60M)")
    parser.add_argument("--method", action="append", help="may be repeated (all optimizers of the catalogue)")
    parser.add_argument("--rounds", type=int, default=20, help="turns (20; a tenth where renewals are timed)")
    parser.add_argument("--gap", type=int, default=50, help="longest interval of renewal that is timed whole (50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    header = ["method", "of", "ms a step", "time / fused AdamW", "state", "moved", "time a byte", "goals"]
    parts, numbers = [], {}
    for name in options.model or ["5M", "60M"]:
        bench = Workbench(name, options.seed)
        found = []
        for rivals in contestants(options.method):
            found += bench.measured(rivals, options.rounds, options.gap)
            say(f"{name}: {rivals[0].method}: {found[-len(rivals)]['milliseconds']:.1f} ms")
        parts.append(f"{name} ({bench.count / 1e6:.1f}M parameters with embeddings)\n\n{table(header, rows(found))}\n")
        numbers[name] = {"parameters": bench.count, "found": found}
    kept = ("rounds", "gap", "seed")
    finish("\n".join(parts), {"options": {key: getattr(options, key) for key in kept}, "models": numbers}, options.json)


if __name__ == "__main__":
    main()
