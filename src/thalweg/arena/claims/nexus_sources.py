"""Do sequential normalised steps through two sources make their gradients agree, and help on a third text?

A small character model is trained on prose and code, half of every step's four micro-batches each, in random order:

    plain      Adam on their mean gradient          control    Adam on the mean of the normalised gradients
    nexus      Adam on the walk, gamma 0.05         far        the same with gamma 0.5

each at the better of two peak rates for the two texts it is trained on. Then: held-out loss on both; the cosine
between the gradients of held-out prose and held-out code; and the loss on a text of a third kind, docstrings.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from thalweg import catalog
from thalweg.arena.claims import small_text
from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.small_text import Batch
from thalweg.data.sampler import WindowSampler

ARMS: dict[str, float | None] = {"plain": None, "control": 0.0, "nexus": 0.05, "far": 0.5}
PEAKS = (0.02, 0.04)
STEPS, SEEDS, PARTS, ROWS = 200, 5, 4, 4
# Losses on the texts of training that differ by less than this share count as the same, as in the source.
SAME = 0.01
DOCUMENTED = ("difflib.py", "logging/__init__.py", "optparse.py", "pickletools.py", "subprocess.py")


def nexus_sources(seed: int = 0, steps: int = STEPS) -> Finding:
    """Held-out loss on prose and code, cosine of their gradients, loss on docstrings: means over seeds, and verdict."""
    sources, elsewhere = (small_text.prose(), small_text.code()), docstrings()
    found: dict[str, list[tuple[float, float, float]]] = {}
    peaks: dict[str, float] = {}
    for arm, gamma in ARMS.items():
        tried = {peak: _measured(_trained(sources, gamma, peak, seed, steps), sources, elsewhere) for peak in PEAKS}
        peaks[arm] = min(PEAKS, key=lambda peak: tried[peak][0])
        # The seed that has chosen the rate is not among those that count.
        found[arm] = [
            _measured(_trained(sources, gamma, peaks[arm], seed + 1 + run, steps), sources, elsewhere)
            for run in range(SEEDS)
        ]
    return _judged(found, peaks)


def docstrings() -> Batch:
    """Docstrings of modules that are not among the code."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for name in DOCUMENTED:
        for node in ast.walk(ast.parse((folder / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                texts.append(ast.get_docstring(node) or "")
    characters = np.frombuffer("\n".join(texts).encode("ascii", "replace"), np.uint8).astype(np.int64)
    held = torch.from_numpy(characters[: small_text.HELD_OUT].copy())
    return {"input_ids": held[None, :-1], "targets": held[None, 1:]}


def _trained(sources: Any, gamma: float | None, peak: float, seed: int, steps: int) -> nn.Module:
    model = small_text.network(seed)
    samplers = [
        WindowSampler(text, small_text.CONTEXT, ROWS * PARTS // 2, 2 * seed + index)
        for index, (text, _) in enumerate(sources)
    ]
    trainer = SimpleNamespace(
        parameters=list(model.parameters()), plan={"batch_size": PARTS, "micro_batch": 1}, world_size=1
    )
    nexus = None if gamma is None else catalog.resolve("nexus")(gamma=gamma, parts=PARTS)
    if nexus is not None:
        nexus.setup(trainer)
    optimizer = torch.optim.Adam(model.parameters(), lr=peak, betas=(0.9, 0.95), foreach=True)
    dice = random.Random(seed)
    for step in range(steps):
        batches = [sampler.batch(step) for sampler in samplers]
        parts = [{key: value[i::2] for key, value in batch.items()} for batch in batches for i in range(2)]
        dice.shuffle(parts)
        for index, part in enumerate(parts):
            (small_text.loss_of(model, part) / PARTS).backward()
            if nexus is not None:
                nexus.accumulated(trainer, index == PARTS - 1)
        optimizer.param_groups[0]["lr"] = peak * (1.0 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    return model


def _measured(model: nn.Module, sources: Any, elsewhere: Batch) -> tuple[float, float, float]:
    """(mean held-out loss on the sources, cosine of their gradients, loss elsewhere)."""
    losses = [small_text.loss_of(model, held) for _, held in sources]
    parameters = list(model.parameters())
    slopes = [torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]) for loss in losses]
    cosine = functional.cosine_similarity(slopes[0], slopes[1], dim=0)
    return float(torch.stack(losses).mean().detach()), float(cosine), small_text.held_out(model, elsewhere)


def _judged(found: dict[str, list[tuple[float, float, float]]], peaks: dict[str, float]) -> Finding:
    means = {arm: [round(mean(column), 4) for column in zip(*rows, strict=True)] for arm, rows in found.items()}
    gains = {
        other: [two[2] - one[2] for one, two in zip(found[other], found["nexus"], strict=True)]
        for other in ("plain", "control")
    }
    middle = {other: mean(values) for other, values in gains.items()}
    error = {other: stdev(values) / len(values) ** 0.5 for other, values in gains.items()}
    far = means["far"][2] - means["plain"][2]
    same = abs(means["nexus"][0] / means["plain"][0] - 1.0) <= SAME
    better = all(middle[other] + 2.0 * error[other] < 0.0 for other in gains)
    worse = any(middle[other] - 2.0 * error[other] > 0.0 for other in gains)
    return Finding(
        numbers={
            **{f"{arm}: sources, cosine, elsewhere": values for arm, values in means.items()},
            **{f"{arm}: peak rate": peak for arm, peak in peaks.items()},
            **{f"elsewhere, nexus less {other}": round(value, 5) for other, value in middle.items()},
            **{f"elsewhere, standard error against {other}": round(value, 5) for other, value in error.items()},
        },
        holds=True if better and same else False if worse or (better and not same) else None,
        sentence=(
            f"Nats a character on the two sources {means['nexus'][0]:.3f} with the walk, {means['plain'][0]:.3f} "
            f"without; on docstrings the walk differs by {middle['plain']:+.4f} (standard error "
            f"{error['plain']:.4f}) from Adam and by {middle['control']:+.4f} ({error['control']:.4f}) from normalised "
            f"gradients alone, and with steps ten times as long by {far:+.4f}; cosine of the sources' gradients "
            f"{means['nexus'][1]:.3f}, {means['plain'][1]:.3f}, {means['control'][1]:.3f} and {means['far'][1]:.3f}."
        ),
    )
