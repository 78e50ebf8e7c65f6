"""The decoder blocks of a causal language model."""

from __future__ import annotations

from torch import nn


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The model's decoder blocks in order: its longest list of modules, which they are in every Hugging Face
    model.

    An empty list where the model has no list of modules.
    """
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])
