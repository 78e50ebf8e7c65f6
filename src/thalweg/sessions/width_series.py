"""The same model at several widths, in two parameterisations, trained on the same text: what checks of muP have in
common.

Standard is what `thalweg train` does without muP at one rate for all: matrices drawn with 1 / sqrt(fan-in), the same
rate for every parameter. muP is the method of the catalogue on the same initial draws. Both are the same model at the
base width. Text is some modules of the standard library, a byte a token, so nothing has to be prepared.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from thalweg import catalog
from thalweg.arms import Choice, parse_choice
from thalweg.errors import RecipeError
from thalweg.models.evaluate import nats_of
from thalweg.models.ladder import Shape, build
from thalweg.models.parameter_groups import parameter_groups
from thalweg.planner import rules

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

STANDARD, MUP = "standard", "mup"
PARAMETERISATIONS = (STANDARD, MUP)
BYTES = 256
HELD_OUT = 65_536
FILES = ("argparse.py", "ast.py", "doctest.py", "inspect.py", "pdb.py", "tarfile.py", "turtle.py", "typing.py")
WEIGHT_DECAY = 0.1

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class WidthSeries:
    """What stays the same from width to width.

    Args:
        optimizer: as an arm spells it.
        base_width: where both parameterisations are one.
        layers, context, batch: of every model; windows a step.
    """

    optimizer: str = "adamw"
    base_width: int = 64
    layers: int = 4
    context: int = 64
    batch: int = 8

    def __post_init__(self) -> None:
        if self.choice.slot != "optimizer":
            raise RecipeError(f"{self.choice.name} is no optimizer", where="--optimizer", fix="Such as adamw or muon.")
        shape_at(self.base_width, self.layers)

    @property
    def choice(self) -> Choice:
        """The optimizer."""
        return parse_choice(self.optimizer)

    @property
    def rate(self) -> float:
        """The optimizer's own peak rate at the base width."""
        return rules.card_rule(catalog.lookup(self.choice.name)).at(self.base_width)

    def model(self, width: int, parameterisation: str, seed: int, lr: float) -> tuple[LlamaForCausalLM, Any]:
        """A fresh model, and its optimizer with a rate that is meant for the base width."""
        model = build(shape_at(width, self.layers), BYTES, self.context, seed)
        groups = parameter_groups(model, WEIGHT_DECAY)
        if parameterisation == MUP:
            base = shape_at(self.base_width, self.layers)
            exponent = catalog.lookup(self.choice.name).defaults["width_exponent"]
            method = catalog.resolve("mup")
            mup = method(
                base_width=base.width,
                base_feed_forward=base.feed_forward,
                base_head_size=base.head_size,
                rule=method.rule_of(exponent),
            )
            groups = mup.groups(mup.install(model), groups)
        return model, self.choice.build(groups, lr=lr)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Training batches without end: `input_ids` and `targets`, both [batch, context]."""
        text, generator = _text()[:-HELD_OUT], np.random.default_rng(seed)
        while True:
            starts = generator.integers(0, len(text) - self.context - 1, self.batch)
            yield _windows(text, starts, self.context)

    def held_out(self, windows: int) -> Batch:
        """Windows that are not trained on, the same at every call."""
        text = _text()[-HELD_OUT:]
        return _windows(text, np.arange(windows) * self.context % (HELD_OUT - self.context - 1), self.context)


def shape_at(width: int, layers: int) -> Shape:
    """A shape of the ladder's proportions (see `models.ladder`) at any width that its heads divide.

    Raises:
        RecipeError: a width that is not a multiple of 32, or of 64 from 256 on.
    """
    head = 32 if width < 256 else 64
    if width < head or width % head:
        raise RecipeError(f"width {width} is not a multiple of {head}", where="--widths", fix="Such as 64,128,256.")
    return Shape(f"width {width}", layers, width, width // head, 32 * round(width * 8 / 3 / 32), tied=True)


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats a byte."""
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    return nats_of(logits.flatten(0, 1), batch["targets"].flatten()).mean()


def step(model: LlamaForCausalLM, optimizer: Any, batch: Batch) -> None:
    """One step of training at the rates that stand in the optimizer's groups."""
    loss_of(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()


def set_rates(optimizer: Any, lr: float) -> None:
    """Give every group its share of a rate, as the trainer does."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


@cache
def _text() -> np.ndarray:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return np.frombuffer(b"".join((folder / name).read_bytes() for name in FILES), np.uint8).astype(np.int64)


def _windows(text: np.ndarray, starts: Sequence[int] | np.ndarray, context: int) -> Batch:
    rows = torch.from_numpy(np.stack([text[start : start + context + 1] for start in starts]))
    return {"input_ids": rows[:, :-1], "targets": rows[:, 1:]}
