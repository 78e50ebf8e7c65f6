"""Which matrices take their step together: those of one shape or of its transpose, as many as a batch should hold.

Small models have many small matrices, and a call each would cost more than the maths; large ones must not have scratch
memory for all of their matrices at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from thalweg.methods.optimizers.base import sides_of


def batches(tensors: Sequence[Tensor], most: Mapping[str, int]) -> list[list[int]]:
    """Indices of matrices, or of parameters that hold some, that can be stacked: same sides, type and device.

    Args:
        tensors: two dimensions and more; three are a stack, more are one filter [out, rest].
        most: numbers in a batch by the device's type, or "other"; a batch has one tensor at least.
    """
    kinds: dict[tuple, list[list[int]]] = {}
    filled: dict[tuple, int] = {}
    for index, tensor in enumerate(tensors):
        kind = (short_and_long(tensor), tensor.dtype, tensor.device)
        room = most.get(tensor.device.type, most["other"])
        if kind in kinds and filled[kind] + tensor.numel() <= room:
            kinds[kind][-1].append(index)
        else:
            kinds.setdefault(kind, []).append([index])
            filled[kind] = 0
        filled[kind] += tensor.numel()
    return [batch for found in kinds.values() for batch in found]


def short_and_long(parameter: Tensor) -> tuple[int, int]:
    """The short side of a parameter's matrices and the long one."""
    rows, columns = sides_of(parameter)
    return min(rows, columns), max(rows, columns)


def matrices_of(tensor: Tensor) -> Tensor:
    """A view [matrices, rows, columns]."""
    return tensor if tensor.ndim == 3 else tensor.flatten(1).unsqueeze(0)


def matrix_count(parameter: Tensor) -> int:
    """How many matrices a parameter holds."""
    return parameter.shape[0] if parameter.ndim == 3 else 1
