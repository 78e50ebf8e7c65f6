"""How good is a model on held-out documents? Bits per byte, with an interval that says how much to believe.

Bits per byte is what a tokenizer cannot flatter: the total cost of a text under the model in bits over its
length in bytes. The documents are a sample of a population of documents, so the interval comes from drawing
documents (not tokens, which depend on one another inside a document) again and again with replacement, and
taking the ratio of sums. Perplexity has an interval of its own from the same draws: a document's share of the tokens is
not its share of the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.nn import functional

from thalweg.errors import DataError
from thalweg.models.head import backbone_and_head, evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits held at once: 4M numbers are 16 MB in float32, about what a last-level cache holds.
_LOGITS_AT_ONCE = 1 << 22
_RESAMPLES = 2000


class Split(Protocol):
    """What evaluation needs of a token store's split (thalweg.data.TokenSplit is one)."""

    @property
    def token_count(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [stop - start], int64."""
        ...

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        """Token offsets [n + 1], each document with its closing separator; bytes [n] without separators."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What a model costs on a split.

    Args:
        loss: nats a token.
        bits_per_byte: total bits over total bytes; separators cost bits and have no bytes.
        perplexity: exp(loss).
        low: lower end of the 95% interval of bits_per_byte over documents.
        high: upper end.
        perplexity_low, perplexity_high: the ends of that of perplexity.
        tokens: predicted tokens.
        documents: documents wholly covered.
    """

    loss: float
    bits_per_byte: float
    perplexity: float
    low: float
    high: float
    tokens: int
    documents: int
    perplexity_low: float
    perplexity_high: float


def evaluate(
    model: PreTrainedModel,
    split: Split,
    context: int,
    batch_size: int,
    max_tokens: int | None = None,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    token_losses: torch.nn.Module | None = None,
) -> Evaluation:
    """Measures a causal language model on the head of a split.

    The tokens are read in windows of `context`, one after the other, so each token but the very first is
    predicted once, with between 1 and `context` tokens before it. A document cut by max_tokens is dropped.
    Where fewer than two documents are whole, windows take the documents' place (a document's bytes spread
    evenly over its tokens), so that a corpus of one long text has a value and an interval too.

    The model's modes, gradients and the global random state are left alone.

    Args:
        model: any transformers causal language model.
        split: see Split.
        context: tokens a window.
        batch_size: windows at once; the logits are made in pieces of at most 4M numbers (or one window's, for
            a model whose logits are more than hidden states times a table).
        max_tokens: at most so many tokens from the start; None means all.
        autocast: a dtype to compute in, None for that of the weights. The loss is always float32.
        seed: of the bootstrap.
        token_losses: a module that gives cross-entropies [B, T] from inputs and targets in evaluation mode; needed
            where the model cannot be called by itself, since its weights are divided over ranks.

    Raises:
        DataError: fewer than two tokens, or a context or batch size below one.
    """
    if context < 1 or batch_size < 1:
        raise DataError(f"Evaluation needs context and batch_size of at least 1, not {context} and {batch_size}.")
    limit = split.token_count if max_tokens is None else min(split.token_count, max_tokens)
    if limit < 2:
        raise DataError(f"Evaluation needs at least two tokens, there are {limit}.", fix="Hold out more documents.")
    offsets, sizes, documents = _units(split, limit, context)
    end = int(offsets[-1])
    nats = np.zeros(len(sizes))
    with torch.no_grad(), evaluation_mode(model if token_losses is None else token_losses):
        losses = _loss_function(model, autocast) if token_losses is None else _called(token_losses, autocast)
        for start, tokens in _stretches(split, end, batch_size * context):
            costs = losses(*_windows(tokens, context, model.device))[: len(tokens) - 1]
            units = np.searchsorted(offsets, np.arange(start + 1, start + len(tokens)), side="right") - 1
            nats += np.bincount(units, weights=costs, minlength=len(sizes))
    return _told(nats, offsets, sizes, documents, seed)


def _told(nats: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, documents: int, seed: int) -> Evaluation:
    """From the nats [n] of each unit, its place among the tokens and its bytes."""
    end = int(offsets[-1])
    total_nats, total_bytes = float(nats.sum()), float(sizes.sum())
    loss = total_nats / (end - 1)
    predicted = np.diff(offsets)
    predicted[0] -= 1  # nothing stands before the first token
    (low, high), losses_between = _intervals(nats, [sizes * math.log(2), predicted], seed)
    return Evaluation(
        loss=loss,
        bits_per_byte=total_nats / math.log(2) / total_bytes,
        perplexity=_perplexity(loss),
        low=low,
        high=high,
        tokens=end - 1,
        documents=documents,
        perplexity_low=_perplexity(losses_between[0]),
        perplexity_high=_perplexity(losses_between[1]),
    )


def _stretches(split: Split, end: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """(start, tokens start .. start + size, each stretch beginning with the last token of the one before it)."""
    for start in range(0, end - 1, size):
        yield start, split.read(start, min(start + size + 1, end))


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def _units(split: Split, limit: int, context: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(token offsets [n + 1] of the units of the bootstrap, bytes [n] of each, number of whole documents)."""
    offsets, sizes = (np.asarray(values) for values in split.documents())
    whole = int(np.searchsorted(offsets, limit, side="right")) - 1
    if whole >= 2 and sizes[:whole].sum() > 0:
        return offsets[: whole + 1].astype(np.int64), sizes[:whole].astype(np.float64), whole
    bounds = np.unique(np.append(np.arange(0, limit, context), limit))
    bytes_before = np.interp(bounds, offsets, np.concatenate([[0.0], np.cumsum(sizes)]))
    if bytes_before[-1] <= 0:
        raise DataError("The held-out documents are empty.", fix="Hold out more documents.")
    return bounds, np.diff(bytes_before), whole


def _windows(tokens: np.ndarray, context: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets [windows, context] of a stretch of tokens; the last window is filled up with ignored
    ones.

    Filling sits at the end, where a causal model cannot see it from the tokens that count.
    """
    count = len(tokens) - 1
    rows = -(-count // context)
    filled = np.zeros((2, rows * context), dtype=np.int64)
    filled[1] = -100
    filled[0, :count], filled[1, :count] = tokens[:-1], tokens[1:]
    inputs, targets = torch.from_numpy(filled).view(2, rows, context).to(device)
    return inputs, targets


def _called(
    token_losses: torch.nn.Module, autocast: torch.dtype | None
) -> Callable[[torch.Tensor, torch.Tensor], np.ndarray]:
    """The same function where a module makes the losses."""

    def losses(inputs: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
        with nullcontext() if autocast is None else torch.autocast(inputs.device.type, dtype=autocast):
            return token_losses(inputs, targets).flatten().double().cpu().numpy()

    return losses


def _loss_function(
    model: PreTrainedModel, autocast: torch.dtype | None
) -> Callable[[torch.Tensor, torch.Tensor], np.ndarray]:
    """A function of inputs and targets [B, T] that gives nats [B * T], holding few logits at a time."""
    backbone, head, exact = backbone_and_head(model)
    precision = nullcontext() if autocast is None else torch.autocast(model.device.type, dtype=autocast)

    def from_hidden_states(inputs: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
        assert head is not None
        piece = max(1, _LOGITS_AT_ONCE // head.shape[0])
        with precision:
            hidden = backbone(input_ids=inputs, use_cache=False).last_hidden_state.flatten(0, 1)
            parts = [
                nats_of(functional.linear(part, head), target)
                for part, target in zip(hidden.split(piece), targets.flatten().split(piece), strict=True)
            ]
        return torch.cat(parts).double().cpu().numpy()

    def from_logits(inputs: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
        rows = max(1, _LOGITS_AT_ONCE // (model.config.get_text_config().vocab_size * inputs.shape[1]))
        with precision:
            parts = [
                nats_of(model(input_ids=some, use_cache=False).logits.flatten(0, 1), target.flatten())
                for some, target in zip(inputs.split(rows), targets.split(rows), strict=True)
            ]
        return torch.cat(parts).double().cpu().numpy()

    return from_hidden_states if exact else from_logits


def nats_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropies [N] in float32 of logits [N, V]; 0 where the target is -100."""
    return functional.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="none")


def _intervals(nats: np.ndarray, sizes: list[np.ndarray], seed: int) -> list[tuple[float, float]]:
    """95% percentile bootstrap of sums of nats over sums of each of these sizes; all by unit [n]."""
    if len(nats) > _RESAMPLES:
        # Thousands of neighbours together lose nothing of the spread and keep the draw small.
        edges = np.linspace(0, len(nats), _RESAMPLES, endpoint=False).astype(int)
        nats, *sizes = (np.add.reduceat(values, edges) for values in (nats, *sizes))
    chosen = np.random.default_rng(seed).integers(0, len(nats), size=(_RESAMPLES, len(nats)))
    cost = nats[chosen].sum(axis=1)
    found = []
    for size in sizes:
        drawn = size[chosen].sum(axis=1)
        low, high = np.quantile(cost[drawn > 0] / drawn[drawn > 0], [0.025, 0.975])
        found.append((float(low), float(high)))
    return found
