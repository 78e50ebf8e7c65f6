"""Chains of operators over many tensors, a part of them at a time, so that a CPU reads each from memory once.

An operator at a time over all parameters of a model goes through memory once for each operator. The same chain over as
many numbers as stay in a core's cache goes there once: half of the time or less. Elsewhere, and where a compiler joins
the operators by itself, everything is one part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PIECE = 1 << 17  # numbers of each tensor; half a megabyte in float32


def pieces(*lists: Sequence[Tensor]) -> Iterator[tuple[list[int], tuple[list[Tensor], ...]]]:
    """Views of tensors for elementwise operators: small ones together, large ones cut.

    Args:
        lists: of equally many tensors; those of one place have one shape.

    Yields:
        The place that each view is of, and a list of views for each of the lists.
    """
    if _is_whole(lists[0]):
        yield list(range(len(lists[0]))), tuple(list(one) for one in lists)
        return
    places: list[int] = []
    held: tuple[list[Tensor], ...] = tuple([] for _ in lists)
    count = 0
    for place, tensors in enumerate(zip(*lists, strict=True)):
        # A view of all numbers in a row is possible only where they lie so.
        flat = all(tensor.is_contiguous() for tensor in tensors)
        for views in zip(*(t.view(-1).split(PIECE) for t in tensors), strict=True) if flat else [tensors]:
            places.append(place)
            for views_so_far, view in zip(held, views, strict=True):
                views_so_far.append(view)
            count += views[0].numel()
            if count >= PIECE:
                yield places, held
                places, held, count = [], tuple([] for _ in lists), 0
    if places:
        yield places, held


def batches_of_whole(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors in their order, in batches of at least one, for what needs whole ones (norms)."""
    if _is_whole(tensors):
        return [list(tensors)] if tensors else []
    found: list[list[Tensor]] = []
    count = PIECE
    for tensor in tensors:
        if count >= PIECE:
            found.append([])
            count = 0
        found[-1].append(tensor)
        count += tensor.numel()
    return found


def _is_whole(tensors: Sequence[Tensor]) -> bool:
    return not tensors or tensors[0].device.type != "cpu" or torch.compiler.is_compiling()
