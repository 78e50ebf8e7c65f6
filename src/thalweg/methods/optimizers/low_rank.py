"""What optimizers that keep their state in a low-rank subspace share: stacks of matrices, their state, Adam in it, SVD.

Every matrix is looked at as a tall one, G [m, n] with m >= n (a wide one is transposed), so that a subspace always is
one of the n short sides: with P [n, r], P^T P = I,

    R = G P             [m, r], what the state is kept for
    R P^T               [m, n], back

The side is decided by the shape of G, never by that of R. Matrices of one shape, and of its transpose, take their step
together as a stack [b, m, n]: small models have many small matrices. Three dimensions are b matrices already
(experts), four and more one filter [out, rest].

Under FSDP2 gradients are gathered, a stack at a time, and every rank computes the same update; low-rank state is laid
out over the ranks by its first dimension, so memory falls with their number as it does for AdamW.

All that is periodic depends on the step count of the parameter, which is state, and on nothing else: a resumed run
refreshes its subspaces when the straight one does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor import zeros as sharded_zeros

from thalweg.methods.optimizers.base import Base, Group, sides_of, working_dtype
from thalweg.methods.optimizers.batches import batches, matrices_of, matrix_count, short_and_long
from thalweg.methods.optimizers.sharding import gathered, local, scattered

# Numbers in one stack: bounds what lies about beside the state, which is what these methods want small (64 MiB). A CPU
# gains nothing by more than fits into its cache.
STACK_ELEMENTS = {"cpu": 1 << 18, "other": 1 << 24}


def rank_of(rank: float, columns: int) -> int:
    """The dimension of the subspace: `rank` itself from 1 on, below 1 that share of the short side, at least 1."""
    wanted = rank * columns if rank < 1.0 else rank
    return min(columns, max(1, math.floor(wanted + 0.5)))


class Stack:
    """Matrices of one shape that take a step together.

    Attributes:
        parameters: the parameters that hold them.
        counts: how many matrices each of them holds.
        rows, columns: m and n, of the tall form.
        rank: r.
        step: the number of this step, from 1 on.
    """

    def __init__(self, optimizer: Base, group: Group, parameters: list[Tensor]) -> None:
        self.optimizer, self.group, self.parameters = optimizer, group, parameters
        self.step: int = optimizer.state[parameters[0]]["step"]
        self.columns, self.rows = short_and_long(parameters[0])
        self.rank = rank_of(group["rank"], self.columns)
        self.counts = [matrix_count(parameter) for parameter in parameters]

    def refreshes(self, gap: int) -> bool:
        """Whether a subspace that is kept for `gap` steps is chosen anew in this one (the first always is)."""
        return (self.step - 1) % gap == 0

    # -- in the shape of the parameters ---------------------------------------------------------------------------

    def whole(self, shards: Sequence[Tensor]) -> Tensor:
        """[b, m, n], not to be changed, from what is laid out like the parameters."""
        pairs = zip(shards, self.parameters, strict=True)
        return _joined([_tall(gathered(shard, parameter)) for shard, parameter in pairs])

    def shards(self, whole: Tensor) -> list[Tensor]:
        """The inverse of `whole`: this rank's part of [b, m, n] for every parameter."""
        pairs = zip(whole.split(self.counts), self.parameters, strict=True)
        return [scattered(_untall(piece, parameter), parameter) for piece, parameter in pairs]

    def subtract(self, direction: Tensor, lr: float) -> None:
        """W = W (1 - group's lr wd) - lr direction."""
        weights = self.optimizer.weights(self.parameters)
        torch._foreach_mul_(weights, 1.0 - self.group["lr"] * self.group["weight_decay"])
        torch._foreach_add_(weights, self.shards(direction), alpha=-lr)

    def subtract_product(self, left: Tensor, right: Tensor, lr: float) -> None:
        """The same with the direction left @ right, of [b, m, r] and [b, r, n], which need not be made."""
        if any(isinstance(parameter, DTensor) or parameter.ndim > 3 for parameter in self.parameters):
            self.subtract(left @ right, lr)
            return
        weights = self.optimizer.weights(self.parameters)
        kept = 1.0 - self.group["lr"] * self.group["weight_decay"]
        for weight, a, b in zip(weights, left.split(self.counts), right.split(self.counts), strict=True):
            matrices = matrices_of(weight)
            if matrices.shape[1] >= matrices.shape[2]:
                matrices.baddbmm_(a, b, beta=kept, alpha=-lr)
            else:
                matrices.baddbmm_(b.mT, a.mT, beta=kept, alpha=-lr)

    # -- state of another shape -----------------------------------------------------------------------------------

    def states(self, name: str, rows: int, columns: int) -> list[Tensor]:
        """A state [rows, columns] a matrix, zeros at first; under FSDP2 sharded by the first dimension."""
        for parameter in self.parameters:
            if name not in self.optimizer.state[parameter]:
                shape, dtype = (*_leading(parameter), rows, columns), working_dtype(parameter)
                self.optimizer.state[parameter][name] = zeros_beside(parameter, shape, dtype)
        return [self.optimizer.state[parameter][name] for parameter in self.parameters]

    def copies(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A small state [*shape] a matrix that every rank has whole, zeros at first: [b, *shape], a new tensor."""
        for parameter, count in zip(self.parameters, self.counts, strict=True):
            if name not in self.optimizer.state[parameter]:
                zeros = torch.zeros((count, *shape), dtype=dtype, device=parameter.device)
                self.optimizer.state[parameter][name] = zeros
        return torch.cat([self.optimizer.state[parameter][name] for parameter in self.parameters])

    def keep(self, name: str, values: Tensor) -> None:
        """Write [b, *shape] into the state that `copies` reads."""
        states = [self.optimizer.state[parameter][name] for parameter in self.parameters]
        torch._foreach_copy_(states, list(values.split(self.counts)))

    def assembled(self, shards: Sequence[Tensor], states: Sequence[Tensor]) -> Tensor:
        """[b, rows, columns], not to be changed, from what is laid out like `states`."""
        wholes = [gathered(shard, state) for shard, state in zip(shards, states, strict=True)]
        return _joined([whole.reshape(-1, *whole.shape[-2:]) for whole in wholes])

    def divided(self, whole: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        """The inverse of `assembled`."""
        pairs = zip(whole.split(self.counts), states, strict=True)
        return [scattered(piece.reshape(state.shape), state) for piece, state in pairs]

    # -- what GaLore, Fira and DCT-AdamW do alike -----------------------------------------------------------------

    def adam(self, low: Tensor, mix: Tensor | None = None) -> Tensor:
        """Adam's direction M^ / (sqrt(V^) + eps) for R [b, m, r], with moments of that shape as state.

        Args:
            low: R.
            mix: [b, r, r], what the moments are multiplied by from the right before R is added.
        """
        beta1, beta2 = self.group["betas"]
        first, second = (self.states(name, self.rows, self.rank) for name in ("exp_avg", "exp_avg_sq"))
        firsts, seconds = [local(state) for state in first], [local(state) for state in second]
        if mix is not None:
            for states, moments in ((first, firsts), (second, seconds)):
                torch._foreach_copy_(moments, self.divided(self.assembled(moments, states) @ mix, states))
        own = self.divided(low, first)
        torch._foreach_lerp_(firsts, own, 1.0 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, own, own, 1.0 - beta2)
        roots = torch._foreach_sqrt(seconds)
        torch._foreach_div_(roots, math.sqrt(1.0 - beta2**self.step))
        torch._foreach_add_(roots, self.group["eps"])
        directions = torch._foreach_div(firsts, roots)
        torch._foreach_div_(directions, 1.0 - beta1**self.step)
        return self.assembled(directions, first)


def singular_subspace(stack: Stack, gradients: Tensor, gap: int) -> Tensor:
    """P [b, n, r], not to be changed: the right singular vectors of G's r largest singular values, every `gap` steps.

    A decomposition leaves the signs open, and moments that outlive a subspace depend on them: the largest entry of a
    vector is made positive, so that they do not depend on who decomposed. On GPUs a decomposition waits for the device;
    the steps between do not.
    """
    states = stack.states("projector", stack.columns, stack.rank)
    shards = [local(state) for state in states]
    if stack.refreshes(gap):
        vectors = torch.linalg.svd(gradients, full_matrices=False).Vh[:, : stack.rank].mT
        signs = vectors.gather(-2, vectors.abs().argmax(dim=-2, keepdim=True)).sign()
        torch._foreach_copy_(shards, stack.divided(vectors * signs, states))
    return stack.assembled(shards, states)


def stacks(optimizer: Base, group: Group, parameters: list[Tensor]) -> list[Stack]:
    """The hidden matrices of a group in stacks, with their steps counted."""
    kinds: dict[int, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.numel():
            state = optimizer.state[parameter]
            # A plain number: the host must know when to refresh, and may not ask the device.
            state["step"] = state.get("step", 0) + 1
            kinds.setdefault(state["step"], []).append(parameter)
    return [
        Stack(optimizer, group, [members[index] for index in batch])
        for members in kinds.values()
        for batch in batches(members, STACK_ELEMENTS)
    ]


def zeros_beside(parameter: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros of another shape than a parameter's, on its device; sharded over the same ranks by the first dimension."""
    if not isinstance(parameter, DTensor):
        return torch.zeros(shape, dtype=dtype, device=parameter.device)
    placements = [place if place.is_replicate() else Shard(0) for place in parameter.placements]
    return sharded_zeros(*shape, dtype=dtype, device_mesh=parameter.device_mesh, placements=placements)


def _joined(pieces: list[Tensor]) -> Tensor:
    """[b, m, n]; a single piece as it is."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _leading(parameter: Tensor) -> tuple[int, ...]:
    return (parameter.shape[0],) if parameter.ndim == 3 else ()


def _tall(tensor: Tensor) -> Tensor:
    matrices = matrices_of(tensor)
    return matrices if matrices.shape[1] >= matrices.shape[2] else matrices.mT


def _untall(piece: Tensor, parameter: Tensor) -> Tensor:
    rows, columns = sides_of(parameter)
    return (piece if rows >= columns else piece.mT).reshape(parameter.shape)
