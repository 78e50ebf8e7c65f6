"""What compression cost, as numbers: the model before and after on the same held-out text.

Perplexity hides changes that cancel, so two more are measured beside it: how often the most likely next token is
another one than before, and how spread out the hidden states are.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg import catalog
from thalweg.models.compression import block_linears
from thalweg.models.evaluate import Split, evaluate
from thalweg.models.head import evaluation_mode

AGREED_TOKENS = 16_384
STATES_WINDOWS = 8
TIMED_PASSES = 5


@dataclass(frozen=True)
class Ruler:
    """What models are measured on: always the same tokens.

    Attributes:
        split: held-out documents.
        context: tokens a window.
        tokens: how many are evaluated; None for all.
    """

    split: Split
    context: int
    tokens: int | None

    def measured(self, model: Any, choices: Tensor | None = None) -> dict[str, Any]:
        """Quality and speed of a model.

        Args:
            choices: the next tokens that the original model finds most likely, as `choices` gives them.

        Returns:
            Numbers by name: those of `Evaluation`; "matrix_nuclear_norm"; "tokens_per_second" of forward passes; and
            with choices "agreement", the share of places where this model finds the same token most likely.
        """
        batch = max(1, 8192 // self.context)
        found: dict[str, Any] = asdict(
            evaluate(model, self.split, context=self.context, batch_size=batch, max_tokens=self.tokens)
        )
        if choices is not None:
            found["agreement"] = float((self.choices(model) == choices).double().mean())
        windows = self.windows()[:STATES_WINDOWS].to(next(model.parameters()).device)
        found["tokens_per_second"] = _speed(model, windows)
        found["matrix_nuclear_norm"] = catalog.module("matrix_nuclear_norm").measure(model, {"input_ids": windows})[
            "mnn"
        ]
        return found

    def windows(self) -> Tensor:
        """Whole windows from the head of the split: int64 [windows, context]."""
        count = max(1, min(AGREED_TOKENS, self.split.token_count) // self.context)
        length = min(self.context, self.split.token_count)
        tokens = self.split.read(0, count * length)
        return torch.from_numpy(tokens.copy()).view(count, length)

    def choices(self, model: Any) -> Tensor:
        """The most likely next token after every token of `windows`: int64 [windows, context]."""
        device = next(model.parameters()).device
        with torch.no_grad(), evaluation_mode(model):
            parts = [
                model(input_ids=some.to(device), use_cache=False).logits.argmax(-1).cpu()
                for some in self.windows().split(max(1, 2048 // self.context))
            ]
        return torch.cat(parts)


def _speed(model: Any, windows: Tensor) -> float:
    """Tokens a second of forward passes: the fastest of some, since whatever else the machine does only slows them."""
    times = []
    with torch.no_grad(), evaluation_mode(model):
        for _ in range(TIMED_PASSES):
            began = time.perf_counter()
            float(model(input_ids=windows, use_cache=False).logits[0, -1, 0])  # waits for the device
            times.append(time.perf_counter() - began)
    return windows.numel() / min(times)


def weights_of(model: Any) -> dict[str, Any]:
    """What a model's weights are, counted.

    Returns:
        "parameters" (a tied head once), "non_zero", "memory_bytes" as they lie in memory, "block_weights" (of the
        linears of the blocks), "block_non_zero", and "bits_per_weight" of those linears: the bits of their elements,
        scales and zeros, or of the type that they have where they are not quantized.
    """
    parameters = list(model.parameters())
    linears = block_linears(model).values()
    weights = sum(linear.weight.numel() for linear in linears)
    return {
        "parameters": sum(p.numel() for p in parameters),
        "non_zero": sum(int((p != 0).sum()) for p in parameters),
        "memory_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "block_weights": weights,
        "block_non_zero": sum(int((linear.weight != 0).sum()) for linear in linears),
        "bits_per_weight": sum(_bits(linear) for linear in linears) / max(weights, 1),
    }


def _bits(linear: Any) -> float:
    quantized = linear.fixed.quantized
    if quantized is None:
        return 8.0 * linear.weight.numel() * linear.weight.element_size()
    return quantized.bits_per_weight * linear.weight.numel()
