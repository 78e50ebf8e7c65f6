"""The model and the objective as one module: token ids in, losses a token out.

The logits of a large vocabulary are the largest tensor of a step. They are therefore made for a bounded number of
tokens at a time: cross-entropy forms its gradient with them (`from_hidden`), every other objective makes them again
in the backward pass (`chunked_losses`). Both are exact to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from thalweg.models.chunked import chunked_losses
from thalweg.models.evaluate import nats_of
from thalweg.models.head import backbone_and_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Bytes of float32 logits at a time: on a CPU what the last cache level holds, on a GPU enough to fill the machine.
LOGIT_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}


class TokenLosses(nn.Module):
    """`forward(input_ids [B, T], targets [B, T]) -> losses [B, T]` (float32, nats; 0 where the target is -100).

    In evaluation mode the losses are plain cross-entropies, whatever the objective.

    Args:
        model: a Hugging Face causal language model.
        objective: `forward(logits, targets) -> losses`, perhaps with `from_hidden` for the fused form.

    Attributes:
        weighted: set when something multiplies the losses before their mean is taken; the fused form then keeps
            what it needs for an uneven gradient.
    """

    model: PreTrainedModel
    objective: nn.Module

    def __init__(self, model: PreTrainedModel, objective: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.weighted = False
        parts = backbone_and_head(model)
        self._exact = parts.exact
        # In a tuple, so that torch does not register the backbone a second time under this module.
        self._backbone = (parts.backbone,)

    def forward(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        if not self._exact:
            logits = self.model(input_ids=input_ids, use_cache=False).logits
            if self.training:
                return self.objective(logits, targets)
            return nats_of(logits.flatten(0, 1), targets.flatten()).view(targets.shape)
        hidden = self._backbone[0](input_ids=input_ids, use_cache=False).last_hidden_state
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        # Looked up at each call: FSDP2 and weight surgery replace the parameter object.
        head: nn.Linear = self.model.get_output_embeddings()
        tokens = hidden.flatten(0, -2)
        chunk = max(LOGIT_BYTES[hidden.device.type] // (4 * head.weight.shape[0]), 64)
        fused: Callable[..., Tensor] | None = getattr(self.objective, "from_hidden", None)
        if not self.training:
            pieces = zip(tokens.split(chunk), targets.flatten().split(chunk), strict=True)
            losses = torch.cat([nats_of(head(piece), target) for piece, target in pieces])
        elif fused is not None:
            losses = fused(tokens, head.weight, targets.flatten(), chunk, self.weighted)
        elif len(tokens) <= chunk:
            losses = self.objective(head(tokens), targets.flatten())
        else:
            losses = chunked_losses(tokens, head, self.objective, targets.flatten(), chunk)
        # A copy, not a view: FSDP2's hooks are lost where an output shares memory.
        return losses.reshape(targets.shape).clone()
