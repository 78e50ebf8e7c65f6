"""Any token-wise objective without the logits of all tokens: chunk by chunk, computed again in the backward pass.

For each chunk of tokens: losses = objective(head(hidden), targets), under activation checkpointing, so that one
chunk of logits lives at a time in both passes. Costs one more pass of the head and the objective. Cross-entropy
has a faster form of its own (`linear_cross_entropy`). Source: common practice ("Training Deep Nets with Sublinear
Memory Cost", 2016, arXiv:1604.06174, applied to the output head).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from thalweg.errors import TrainingError


def chunked_losses(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    objective: Callable[[Tensor, Tensor], Tensor],
    targets: Tensor,
    chunk: int = 1024,
) -> Tensor:
    """Per-token losses of targets' shape, equal to `objective(head(hidden), targets)` to rounding.

    Args:
        hidden: [..., d].
        head: from hidden states [n, d] to logits [n, V].
        objective: from logits [n, V] and targets [n] to losses [n]; must treat each token by itself.
        targets: [...], int64.
        chunk: tokens whose logits exist at one time.
    """
    if chunk < 1:
        raise TrainingError(f"chunk = {chunk} is below 1", where="chunked_losses", fix="Try chunk=1024.")

    def losses_of(some_hidden: Tensor, some_targets: Tensor) -> Tensor:
        return objective(head(some_hidden), some_targets)

    pieces = zip(hidden.reshape(-1, hidden.shape[-1]).split(chunk), targets.reshape(-1).split(chunk), strict=True)
    # Without gradients nothing is kept anyway, and checkpointing would only cost.
    if not torch.is_grad_enabled():
        return torch.cat([losses_of(*piece) for piece in pieces]).view(targets.shape)
    return torch.cat([checkpoint(losses_of, *piece, use_reentrant=False) for piece in pieces]).view(targets.shape)
