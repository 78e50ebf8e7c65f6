"""What a training process sets up once: threads, allocator, precision.

glibc gives every block above 128 KiB back to the kernel when it is freed, so each activation of each step is mapped
and zeroed anew. Keeping freed blocks costs nothing (the next step asks for the same ones) and was measured to save
about a tenth of a CPU step (benchmarks/README.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import resource
import sys
from contextlib import AbstractContextManager

import torch

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # names of <malloc.h>


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep freed blocks; False where the C library is another one."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    largest = 2**31 - 1
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, 2**30) and libc.mallopt(_M_TRIM_THRESHOLD, largest))


def set_threads(threads: int) -> None:
    """Use `threads` CPU threads for tensor arithmetic."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The autocast context of a precision: "bfloat16" casts matrix products, "float32" casts nothing."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def peak_memory(device: torch.device) -> int:
    """Largest memory held so far, in bytes: of the device, or of this process when the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
