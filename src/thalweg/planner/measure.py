"""How fast does a model train here? A few steps of the real thing, timed."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from thalweg.models.blocks import decoder_blocks
from thalweg.models.parameter_groups import parameter_groups
from thalweg.recipe import Recipe
from thalweg.training import process
from thalweg.training.token_losses import TokenLosses


@dataclass(frozen=True)
class Speed:
    """Seconds of a forward and backward pass over one micro-batch, and of one optimizer step."""

    micro_batch: float
    optimizer: float
    first: float

    def tokens_per_second(self, micro_tokens: int, micro_batches: int) -> float:
        """Training tokens a second at so many micro-batches a step."""
        return micro_tokens * micro_batches / (self.micro_batch * micro_batches + self.optimizer)


def speed(
    model: torch.nn.Module,
    recipe: Recipe,
    *,
    context: int,
    micro_batch: int,
    precision: str,
    device: torch.device,
    compiled: bool = False,
    repeats: int = 2,
) -> Speed:
    """Train `model` on random tokens for a few micro-batches. The weights are spoilt afterwards."""
    model = model.to(device).train()
    if compiled:
        for block in decoder_blocks(model):
            block.compile()
    losses = TokenLosses(model, recipe.objective.build())
    optimizer = recipe.optimizer.build(parameter_groups(model), lr=1e-6)
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (micro_batch, context + 1), generator=generator).to(device)

    def forward_backward() -> None:
        with process.autocast(device, precision):
            loss = losses(tokens[:, :-1], tokens[:, 1:]).mean()
        loss.backward()

    first = _timed(forward_backward, device)
    _timed(optimizer.step, device)
    passes, steps = [], []
    for _ in range(repeats):
        passes.append(_timed(forward_backward, device))
        steps.append(_timed(optimizer.step, device))
    return Speed(statistics.median(passes), statistics.median(steps), first)


def _timed(work: object, device: torch.device) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
