"""A causal language model taken apart: a backbone that makes hidden states, and the table that makes logits
of them.

A chunked loss needs the two separately, so that the logits of a whole batch (tokens x vocabulary) never exist
at once. Most models compute logits = hidden @ head.T and nothing else; some then cap, scale or shift them.
Whether a model is of the plain kind is not asked of its class but measured: once, on a few tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE_TOKENS = 8


class Parts(NamedTuple):
    """What backbone_and_head() finds.

    backbone: called with input_ids, gives .last_hidden_state [B, T, width].
    head: [vocabulary, width], or None where there is no such table.
    exact: whether last_hidden_state @ head.T is model(input_ids).logits.
    """

    backbone: nn.Module
    head: torch.Tensor | None
    exact: bool


def backbone_and_head(model: PreTrainedModel) -> Parts:
    """Finds the base model and the output table, and checks on a tiny input that they make the logits.

    Where `exact` is False (biases, soft-capping, scaled logits, no base model) use the full logits of the
    model. Costs two forward passes of 8 tokens; draws no random numbers and leaves every module's mode as it
    was.

    Args:
        model: any transformers causal language model.

    Returns:
        Parts(backbone, head, exact). The head is the parameter itself, so gradients flow into it.
    """
    backbone = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    head = getattr(output, "weight", None)
    if backbone is model or not isinstance(head, torch.Tensor) or head.ndim != 2:
        return Parts(backbone, None, False)
    return Parts(backbone, head, _agrees(model, backbone, head))


@torch.no_grad()
def _agrees(model: PreTrainedModel, backbone: nn.Module, head: torch.Tensor) -> bool:
    # Spread over the vocabulary: a single repeated token could hide a bias that happens to be zero there.
    tokens = torch.linspace(0, head.shape[0] - 1, _PROBE_TOKENS, device=head.device).long()[None]
    # Without autocast: in half precision a small bias would pass for rounding.
    with evaluation_mode(model), torch.autocast(head.device.type, enabled=False):
        try:
            logits = model(input_ids=tokens, use_cache=False).logits
            hidden = backbone(input_ids=tokens, use_cache=False).last_hidden_state
        except (TypeError, AttributeError):  # a model with another call signature is not of the plain kind
            return False
    if hidden.shape[-1] != head.shape[1]:
        return False
    rebuilt = nn.functional.linear(hidden, head)
    tolerance = 4 * torch.finfo(logits.dtype).eps * float(logits.abs().max())
    return rebuilt.shape == logits.shape and float((rebuilt - logits).abs().max()) <= tolerance


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode inside; after it each is back in its own mode (some may be frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
