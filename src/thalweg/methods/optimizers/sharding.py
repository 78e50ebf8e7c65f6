"""From this rank's shards to whole tensors and back, for optimizers that need whole matrices under FSDP2.

On plain tensors all three give back what they are given.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor | None) -> Tensor:
    """The part that this rank holds."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(shard: Tensor, parameter: Tensor) -> Tensor:
    """The whole of what is laid out like a parameter and of which this rank holds a shard; every rank must call."""
    if not isinstance(parameter, DTensor):
        return shard
    sharded = DTensor.from_local(
        shard,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return sharded.full_tensor()


def scattered(whole: Tensor, parameter: Tensor) -> Tensor:
    """This rank's shard of a whole tensor that every rank has computed alike."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh, placements = parameter.device_mesh, parameter.placements
    return local(distribute_tensor(whole, mesh, placements, src_data_rank=None))
