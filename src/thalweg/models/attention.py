"""Causal attention by plain matrix products, for CPUs with bfloat16 and short windows.

torch's flash kernel for CPUs gains by never holding the [T, T] scores. For windows of a few hundred tokens the
scores fit the cache anyway, and in bfloat16 the matrix units make the plain form about twice as fast, forward and
backward (measured at T = 256 and 512, heads of 32 and 64; from T = 1024 on the two are level). In float32, on a GPU
and for longer windows the model keeps torch's kernel.

    scores = q k^T / sqrt(d) + mask;  out = softmax(scores) v
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "matrix_products"
LONGEST = 512


def use_fastest_attention(model: nn.Module, device: torch.device, precision: str, context: int) -> None:
    """Switch a Hugging Face model to this form where it is the faster one; leave it alone elsewhere."""
    supported = getattr(model, "_supports_attention_backend", False) and getattr(model, "_supports_sdpa", False)
    if device.type == "cpu" and precision == "bfloat16" and context <= LONGEST and supported:
        model.set_attn_implementation(NAME)  # type: ignore[operator]


@cache
def _mask(length: int, dtype: torch.dtype) -> Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [B, H, T, d], key and value [B, K, T, d] -> [B, T, H, d].

    What is not plain causal self-attention in half precision (masks, dropout, caches, shared key-value heads) goes to
    torch's kernel.
    """
    batch, heads, length, size = query.shape
    plain = attention_mask is None and not dropout and key.shape == query.shape
    if not (plain and query.dtype == torch.bfloat16 and getattr(module, "is_causal", True)):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    shape = (batch * heads, length, size)
    mask = _mask(length, query.dtype).expand(batch * heads, length, length)
    scale = size**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(mask, query.reshape(shape), key.reshape(shape).transpose(1, 2), alpha=scale)
    mixed = torch.bmm(torch.softmax(scores, -1), value.reshape(shape))
    return mixed.view(batch, heads, length, size).transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
