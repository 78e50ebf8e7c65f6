"""Measured speeds of a machine: matrix products and copies, with every thread that torch has.

Each figure is the best of many short trials: other programs can only slow a trial down, so the fastest is the
nearest to what the machine can do. Trials of a kind end after their share of about two seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

# Edges of square products. Small ones fit caches, large ones fill an accelerator; the peak may be anywhere
# between.
_CPU_EDGES = (256, 512, 1024, 2048)
_CUDA_EDGES = (1024, 2048, 4096, 8192)
_SECONDS_A_DTYPE = 0.7
_SECONDS_COPY = 0.25
# Well beyond caches, small beside any memory that can train a model.
_CPU_COPY_BYTES = 1 << 26
_CUDA_COPY_BYTES = 1 << 29


def has_bfloat16_products(device: str) -> bool:
    """Whether bfloat16 products have hardware of their own, without which they are emulated and not worth
    timing."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


def matmul_flops(device: str, dtype: str) -> float:
    """Best FLOP/s of a square matrix product over several sizes; a multiply-add is two.

    Args:
        device: "cpu" or "cuda".
        dtype: "float32" or "bfloat16". float32 uses whatever precision torch is set to.
    """
    import torch

    edges = _CUDA_EDGES if device == "cuda" else _CPU_EDGES
    best = 0.0
    for edge in edges:
        left = torch.ones(edge, edge, device=device, dtype=getattr(torch, dtype))
        right, out = left.clone(), torch.empty_like(left)
        seconds = _fastest(partial(torch.mm, left, right, out=out), device, _SECONDS_A_DTYPE / len(edges))
        best = max(best, 2.0 * edge**3 / seconds)
    return best


def copy_bandwidth(device: str) -> float:
    """Best bytes/s of a copy inside the device's memory, bytes read and bytes written both counted."""
    import torch

    size = _CUDA_COPY_BYTES if device == "cuda" else _CPU_COPY_BYTES
    source = torch.zeros(size // 4, device=device)
    target = torch.ones_like(source)
    return 2.0 * size / _fastest(lambda: target.copy_(source), device, _SECONDS_COPY)


def _fastest(work: Callable[[], object], device: str, seconds: float) -> float:
    """Seconds of the fastest of at least two runs (after one to warm up) within about `seconds`."""
    timed = _timed_cuda if device == "cuda" else _timed_cpu
    timed(work)
    end = time.perf_counter() + seconds
    best = min(timed(work), timed(work))
    while time.perf_counter() < end:
        best = min(best, timed(work))
    return best


def _timed_cpu(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return max(time.perf_counter() - start, 1e-9)


def _timed_cuda(work: Callable[[], object]) -> float:
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return max(start.elapsed_time(end) / 1e3, 1e-9)
