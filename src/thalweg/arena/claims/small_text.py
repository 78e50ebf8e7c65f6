"""A language model that trains in seconds, for claims that need many runs or runs of a special kind.

Text is the standard library's: its prose (the help topics of pydoc) and its code. A character is predicted from the
eight before it by a network with one hidden layer, 30 thousand parameters, with Adam.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg.budget import Budget
from thalweg.training.clock import Clock

CHARACTERS, BEFORE = 128, 8
BATCH, CONTEXT = 16, 32
HELD_OUT = 40_000
CODE = ("argparse.py", "ast.py", "doctest.py", "inspect.py", "pdb.py", "tarfile.py", "turtle.py", "typing.py")

Batch = dict[str, Tensor]


class Text:
    """Characters as a split of tokens, for samplers."""

    def __init__(self, name: str, characters: np.ndarray) -> None:
        self.name, self._characters, self.token_count = name, characters, len(characters)

    def read_into(self, start: int, out: np.ndarray) -> None:
        out[:] = self._characters[start : start + len(out)]


def prose() -> tuple[Any, Batch]:
    """(to train on, held out): the help topics of pydoc."""
    from pydoc_data.topics import topics

    return _divided("prose", "\n".join(topics[name] for name in sorted(topics)))


def code() -> tuple[Any, Batch]:
    """(to train on, held out): some long modules of the standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return _divided("code", "\n".join((folder / name).read_text(encoding="utf-8") for name in CODE))


def _divided(name: str, text: str) -> tuple[Any, Batch]:
    characters = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64)
    held = torch.from_numpy(characters[-HELD_OUT:].copy())
    return Text(name, characters[:-HELD_OUT]), {"input_ids": held[None, :-1], "targets": held[None, 1:]}


def network(seed: int) -> nn.Sequential:
    """Windows of BEFORE characters, [..., BEFORE], to logits [..., CHARACTERS]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Embedding(CHARACTERS, 12),
            nn.Flatten(-2),
            nn.Linear(12 * BEFORE, 128),
            nn.Tanh(),
            nn.Linear(128, CHARACTERS),
        )


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy, in nats a character, of what has BEFORE characters before it in its window."""
    logits = model(batch["input_ids"].unfold(1, BEFORE, 1))
    return functional.cross_entropy(logits.flatten(0, 1), batch["targets"][:, BEFORE - 1 :].flatten())


def train(
    model: nn.Module,
    sampler: Any,
    schedule: Any,
    peak: float,
    steps: int,
    look: Callable[[list[Tensor]], None] | None = None,
) -> nn.Module:
    """Train in place with Adam; `look` is shown the gradients of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=peak, betas=(0.9, 0.95), foreach=True)
    clock = Clock(Budget.parse(f"{steps} steps"))
    for step in range(steps):
        clock.begin_step(1, 1.0)
        loss_of(model, sampler.batch(step)).backward()
        if look is not None:
            look([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        optimizer.param_groups[0]["lr"] = peak * schedule.factor(clock)
        optimizer.step()
        optimizer.zero_grad()
        clock.advance(1, 1.0)
    return model


@torch.no_grad()
def held_out(model: nn.Module, batch: Batch) -> float:
    """Nats a character on held-out text; infinity where the model is broken."""
    loss = float(loss_of(model, batch))
    return loss if loss < float("inf") else float("inf")
