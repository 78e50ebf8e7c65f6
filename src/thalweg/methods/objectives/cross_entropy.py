"""Cross-entropy: the negative log-probability of the next token, token by token.

loss = logsumexp(logits) - logits[target], in nats, computed in float32 whatever the type of the logits.
Targets of -100 give loss 0 and no gradient; who takes the mean divides by the number of the others.
`from_hidden` gives the same losses without the logits of all tokens: see `linear_cross_entropy`.
Source: common practice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.methods.objectives.linear_cross_entropy import IGNORED, linear_cross_entropy, with_normaliser


class CrossEntropy(nn.Module):
    """Per-token cross-entropy in nats."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Losses of targets' shape.

        Args:
            logits: [..., V], any floating type.
            targets: [...], int64; -100 is ignored and gives 0.
        """
        exact = logits if logits.dtype == torch.float64 else logits.float()
        losses = F.cross_entropy(
            exact.reshape(-1, exact.shape[-1]), targets.reshape(-1), ignore_index=IGNORED, reduction="none"
        )
        return losses.view(targets.shape)

    @staticmethod
    def from_hidden(
        hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 1024, weighted: bool = False
    ) -> Tensor:
        """The same losses from hidden states [..., d] and a head weight [V, d], `chunk` tokens at a time.

        weighted=False promises that the losses end in a plain mean or sum and is the faster form; True allows any
        weighting of the losses.
        """
        flat = hidden.reshape(-1, hidden.shape[-1])
        return linear_cross_entropy(flat, weight, targets.reshape(-1), chunk, weighted).view(targets.shape)

    @staticmethod
    def from_hidden_with_normaliser(
        hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, weighted: bool, z_coefficient: float
    ) -> tuple[Tensor, Tensor]:
        """`from_hidden` plus z_coefficient * logsumexp(logits)^2, and the logsumexps, both of targets' shape."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        losses, normaliser = with_normaliser(flat, weight, targets.reshape(-1), chunk, weighted, z_coefficient)
        return losses.view(targets.shape), normaliser.view(targets.shape)
