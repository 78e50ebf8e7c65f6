"""Norms of whole tensors and the ratios that layer-wise optimizers (LARS, LAMB) scale a tensor's step by.

A "layer" is one parameter tensor with at least two dimensions, fused projections and stacks of experts included. Under
FSDP2 the squares of the shards are summed over the ranks, those of all tensors of a layout in a call in one message.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial


def norms(shards: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """The L2 norm of each whole tensor, [n].

    Args:
        shards: what this rank holds of tensors that are laid out like `parameters`; the whole without sharding.
    """
    own = torch.stack(torch._foreach_norm(list(shards)))
    layouts: dict[tuple, list[int]] = {}
    for index, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            layouts.setdefault((parameter.device_mesh, parameter.placements), []).append(index)
    for (mesh, placements), indices in layouts.items():
        # A norm of a replicated tensor is whole already; one of a shard is a part of a sum.
        summed = [Partial() if placement.is_shard() else placement for placement in placements]
        squares = DTensor.from_local(own[indices].square(), mesh, summed, run_check=False)
        own[indices] = squares.full_tensor().sqrt()
    return own


def ratios(above: Tensor, below: Tensor) -> Tensor:
    """above / below, [n], and 1 where either is 0: a tensor of zeros, or one without a gradient, moves as it would."""
    return torch.where((above > 0) & (below > 0), above / below, 1.0)
