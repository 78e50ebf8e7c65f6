"""One process or many: the same trainer under plain `python`, `torchrun` with DDP, and `torchrun` with FSDP2.

Every rank computes its slice of the same global batch; gradients are averaged, so losses and weights agree with the
single process to rounding. What ranks tell each other is tensors (values as JSON bytes), never pickles.
"""

from __future__ import annotations

import contextlib
import json
import os
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from thalweg.errors import MachineError


class Parallel:
    """This process's place among the ranks.

    Attributes:
        rank, world_size: as in torch.distributed; 0 and 1 in a single process.
        device: where this rank computes.
        shard: parameters, gradients and optimizer state are divided over the ranks (FSDP2).
    """

    def __init__(self, device: str = "auto", shard: bool = False) -> None:
        launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
        self.shard = shard
        self._owns_group = False
        kind = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        if kind == "cuda" and not torch.cuda.is_available():
            raise MachineError("there is no CUDA device", where="training.device", fix='Set device = "auto" or "cpu".')
        local = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device(kind, local) if kind == "cuda" else torch.device("cpu")
        if kind == "cuda":
            torch.cuda.set_device(self.device)
        if (launched or shard) and not dist.is_initialized():
            # One rank alone meets nobody: no port, and no word in the environment, which later runs of this process and
            # its children would take for torchrun's.
            alone: dict[str, Any] = {} if launched else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
            dist.init_process_group("nccl" if kind == "cuda" else "gloo", **alone)
            self._owns_group = True
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1

    @property
    def main(self) -> bool:
        """Whether this rank writes files and talks to the user."""
        return self.rank == 0

    def wrap(self, module: nn.Module, blocks: list[nn.Module], partial: bool = False) -> nn.Module:
        """Make `module` compute the same on all ranks; `blocks` are the units that FSDP2 gathers one by one.

        `partial` says that some parameters get no gradient in some steps: DDP then looks for them every time.
        """
        if self.shard:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (self.world_size,))
            for block in blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(module, mesh=mesh)
            return module
        if self.world_size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            return nn.parallel.DistributedDataParallel(
                module, device_ids=ids, gradient_as_bucket_view=True, find_unused_parameters=partial
            )
        return module

    def accumulate(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """The context of one micro-batch: gradients travel with the last one only."""
        if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
            return module.no_sync()
        if self.shard:
            module.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """The mean over ranks of a tensor that carries no gradient."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def gather(self, value: Tensor) -> Tensor:
        """All ranks' values, concatenated along the first dimension in the order of ranks."""
        if self.world_size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.world_size)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def share(self, value: Any) -> Any:
        """Rank 0's JSON value, on every rank."""
        if self.world_size == 1:
            return value
        body = json.dumps(value).encode() if self.main else b""
        size = torch.tensor([len(body)], device=self.device)
        dist.broadcast(size, 0)
        buffer = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.main:
            buffer.copy_(torch.frombuffer(bytearray(body), dtype=torch.uint8))
        dist.broadcast(buffer, 0)
        return json.loads(buffer.cpu().numpy().tobytes())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()
            self._owns_group = False
