"""Fewer decoder blocks: some are taken out of a model for good, and what is left is a model that loads anywhere.

The list of blocks, the number of layers and the lists with an entry a layer in the configuration become shorter, and
the index that attention keeps for its cache is counted anew. A block may depend on its place in other ways (a scale
that falls with depth, experts in every second block), and such a model would not be the same once it is saved and
loaded. So models of the configuration before and after are built without memory, and must agree on the blocks that
stay.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from thalweg.errors import ModelError
from thalweg.models.walker import named_blocks

# Lists of the configuration with an entry a block, as transformers names them.
_A_BLOCK = ("layer_types", "mlp_layer_types", "no_rope_layers")


def remove_blocks(model: Any, removed: Collection[int]) -> None:
    """Take blocks out of a transformers model in place.

    Args:
        model: any transformers causal language model.
        removed: their places, from 0 on.

    Raises:
        ModelError: no block would be left, there is no such block, or blocks that stay would become others in their
            new places. The model is as it was then.
    """
    blocks = named_blocks(model)
    kept = [index for index in range(len(blocks)) if index not in removed]
    if not kept or not set(removed) <= set(range(len(blocks))):
        raise ModelError(
            f"{len(set(removed))} of {len(blocks)} blocks cannot be removed.",
            where="blocks",
            fix=f"Name at most {len(blocks) - 1} of 0 to {len(blocks) - 1}.",
        )
    if len(kept) == len(blocks):
        return
    shorter = copy.deepcopy(model.config)
    _shorten(shorter, kept, len(blocks))
    _check_places(model, shorter, kept)
    _shorten(model.config, kept, len(blocks))
    holder = model.get_submodule(blocks[0][0].rpartition(".")[0])
    for index in sorted(removed, reverse=True):
        del holder[index]
    for index, block in enumerate(holder):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index


def _shorten(config: Any, kept: Sequence[int], count: int) -> None:
    text = config.get_text_config()
    for name in _A_BLOCK:
        entries = getattr(text, name, None)
        if isinstance(entries, list) and len(entries) == count:
            setattr(text, name, [entries[index] for index in kept])
    text.num_hidden_layers = len(kept)


def _check_places(model: Any, shorter: Any, kept: Sequence[int]) -> None:
    """Raise `ModelError` where a block that stays is another one in its new place."""
    before, after = (_blocks_by(type(model), config) for config in (model.config, shorter))
    for place, index in enumerate(kept):
        one, other = _described(before[index]), _described(after[place]) if len(after) == len(kept) else {}
        if one != other:
            changed = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
            raise ModelError(
                f"{type(model).__name__} without these blocks would be another model once it is saved and loaded: "
                f"{changed[0]} of block {index} depends on its place.",
                where="blocks",
                fix="Drop attention or MLPs instead, which leaves all blocks in their places.",
            )


def _blocks_by(kind: type, config: Any) -> list[nn.Module]:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return [block for _, block in named_blocks(kind(copy.deepcopy(config)))]


def _described(block: nn.Module) -> dict[str, Any]:
    """What a block is made of: classes, shapes of parameters, and plain attributes but for its index."""
    found: dict[str, Any] = {}
    for name, module in block.named_modules():
        found[f"{name} class"] = type(module).__name__
        found |= {f"{name}.{key}": tuple(value.shape) for key, value in module.named_parameters(recurse=False)}
        found |= {
            f"{name}.{key}": value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str) and key != "layer_idx" and not key.startswith("_")
        }
    return found
