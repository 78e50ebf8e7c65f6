"""How fast does a model train here? A few steps of the real thing, timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg.models.attention import use_fastest_attention
from thalweg.models.blocks import decoder_blocks
from thalweg.models.ladder import Shape, build
from thalweg.models.parameter_groups import parameter_groups
from thalweg.models.surgery import installed, sets_rates
from thalweg.planner.assumptions import TIMED_PASSES
from thalweg.planner.sizes import Size
from thalweg.recipe import Recipe
from thalweg.training import process
from thalweg.training.token_losses import TokenLosses


@dataclass(frozen=True)
class Speed:
    """What a few steps took.

    Attributes:
        micro_batch: seconds of a forward and backward pass over one micro-batch.
        optimizer: seconds of one optimizer step.
        first: seconds of the first pass, which warms up, and compiles where that is asked for.
        spent: seconds of the whole measurement, building the model included.
    """

    micro_batch: float
    optimizer: float
    first: float
    spent: float


Measure = Callable[..., Speed]  # the signature of `speed`


def speed(
    size: Size,
    recipe: Recipe,
    *,
    context: int,
    micro_batch: int,
    precision: str,
    device: torch.device,
    compiled: bool = False,
    most_seconds: float = float("inf"),
) -> Speed:
    """Train a model on random tokens: one pass and step to warm up, then `TIMED_PASSES` of them timed.

    Args:
        size: what to train; somebody's own model is spoilt afterwards.
        recipe: its objective, its optimizer and what its callbacks put into the model are used.
        micro_batch: windows of `context` tokens in a pass.
        most_seconds: when the warm-up alone takes longer, it is what counts, and nothing is timed after it.
    """
    began = time.perf_counter()
    source = size.source
    model: Any = build(source, size.vocab_size, context, seed=0) if isinstance(source, Shape) else source
    forward_backward, step = work(model, recipe, size.vocab_size, context, micro_batch, precision, device, compiled)
    first, first_step = _timed(forward_backward, device), _timed(step, device)
    passes, steps = [], []
    for _ in range(TIMED_PASSES):
        if time.perf_counter() - began > most_seconds:
            break
        passes.append(_timed(forward_backward, device))
        steps.append(_timed(step, device))
    return Speed(
        micro_batch=statistics.median(passes or [first]),
        optimizer=statistics.median(steps or [first_step]),
        first=first,
        spent=time.perf_counter() - began,
    )


def work(
    model: Any,
    recipe: Recipe,
    vocab_size: int,
    context: int,
    micro_batch: int,
    precision: str,
    device: torch.device,
    compiled: bool = False,
) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """What a step consists of, put together as for a run: (forward and backward pass, optimizer step)."""
    parts = [part for part in (choice.build() for choice in recipe.callbacks) if not sets_rates(part)]
    model = installed(parts, model).to(device).train()
    use_fastest_attention(model, device, precision, context)
    if compiled:
        for block in decoder_blocks(model):
            block.compile()
    losses = TokenLosses(model, recipe.objective.build())
    optimizer = recipe.optimizer.build(parameter_groups(model), lr=1e-6)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (micro_batch, context + 1), generator=generator).to(device)

    @torch.enable_grad()
    def forward_backward() -> Tensor:
        with process.autocast(device, precision):
            loss = losses(tokens[:, :-1], tokens[:, 1:]).mean()
        loss.backward()
        return loss.detach()

    def step() -> None:
        # Optimizers that want the gradient elsewhere, too, get a closure, as from the trainer.
        optimizer.step(*([forward_backward] if getattr(optimizer, "second_look", False) else []))

    return forward_backward, step


def _timed(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
