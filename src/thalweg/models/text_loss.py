"""The loss of a model on windows of text: one number, for comparing a model with itself before and after a change.

For bits per byte with an interval, on documents of a corpus, see `models.evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from thalweg.errors import DataError
from thalweg.models.evaluate import nats_of
from thalweg.models.head import backbone_and_head, evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_AT_ONCE = 4096
LOGITS_AT_ONCE = 1 << 22


def text_loss(model: PreTrainedModel, windows: Tensor) -> float:
    """Nats a token of windows [windows, T], each by itself: its first token is given, the others are predicted.

    Logits are made for a bounded number of tokens where the model is a backbone and a table. Modes, gradients and the
    global random state are left alone.

    Args:
        model: any transformers causal language model.
        windows: int64 [windows, T].

    Raises:
        DataError: no windows, or windows of one token.
    """
    if windows.ndim != 2 or len(windows) < 1 or windows.shape[1] < 2:
        raise DataError(f"Windows of text are [windows, tokens] with two tokens at least, not {list(windows.shape)}.")
    with torch.no_grad(), evaluation_mode(model):
        backbone, head, exact = backbone_and_head(model)
        table = head if exact else None
        rows = max(1, TOKENS_AT_ONCE // windows.shape[1])
        total = 0.0
        for some in windows.to(model.device).split(rows):
            if table is None:
                total += sum(_sum(model(input_ids=one, use_cache=False).logits, one) for one in some.split(1))
                continue
            hidden = backbone(input_ids=some, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
            piece = max(1, LOGITS_AT_ONCE // table.shape[0])
            targets = some[:, 1:].flatten().split(piece)
            for part, target in zip(hidden.split(piece), targets, strict=True):
                total += float(nats_of(functional.linear(part, table), target).sum(dtype=torch.float64))
    return total / (len(windows) * (windows.shape[1] - 1))


def _sum(logits: Tensor, tokens: Tensor) -> float:
    return float(nats_of(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).sum(dtype=torch.float64))
