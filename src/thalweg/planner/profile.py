"""What this machine can do: cores, memory, and measured speeds of the two things training is made of.

Training is matrix products and moving bytes, so the profile measures both: the best rate of a square matrix
product in float32 and in bfloat16, and the rate of a copy. Nothing is looked up in a table of chips, nothing
is invented; what could not be measured is None. A measurement takes about two seconds and is kept in the
cache folder under the machine's identity; a cache that is damaged or of another machine is measured anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.cache import cache_folder
from thalweg.planner import machine_speed
from thalweg.planner.machine_limits import available_memory, core_count, total_memory

# Raised when the fields or the way they are measured change, so that old caches are not believed.
_VERSION = 1
# bfloat16 with autocast also costs casts of every weight; below this gain of the product alone it does not
# pay.
_PAYING_GAIN = 1.3


@dataclass(frozen=True)
class MachineProfile:
    """A machine as the planner sees it.

    Args:
        processor: name of the CPU model.
        cores: cores this process may use (affinity and container quota counted), at least 1.
        threads: threads that torch computes with; the measurements used all of them.
        memory_total: bytes of memory this process may use at most (container limit counted).
        memory_available: bytes free at the time of asking; never from the cache.
        device: "cpu" or "cuda".
        device_name: name of the accelerator, or of the processor.
        device_memory: bytes of the accelerator's memory, None without one.
        float32_flops: best measured FLOP/s of a float32 matrix product.
        bfloat16_flops: the same in bfloat16, None where the machine has no such product worth trying.
        copy_bandwidth: bytes/s of a copy, read and written bytes both counted.
        bfloat16_pays: whether autocast to bfloat16 is expected to be faster than float32.
        torch_version: of the measurement.
    """

    processor: str
    cores: int
    threads: int
    memory_total: int
    memory_available: int
    device: str
    device_name: str
    device_memory: int | None
    float32_flops: float
    bfloat16_flops: float | None
    copy_bandwidth: float
    bfloat16_pays: bool
    torch_version: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dataclasses.asdict(self)


def profile(refresh: bool = False, cache: Path | None = None) -> MachineProfile:
    """The profile of this machine, measured once and then read from the cache.

    Args:
        refresh: measure even if a cached profile is there.
        cache: folder for the JSON file; None means $THALWEG_CACHE or ~/.cache/thalweg. A folder that cannot
            be written costs a measurement the next time, no more.
    """
    identity = _identity()
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder(cache) / "machines" / f"{digest}.json"
    speeds = None if refresh else _read(path, identity)
    if speeds is None:
        speeds = _measure(identity["device"])
        _write(path, {"identity": identity, "speeds": speeds})
    gain = (speeds["bfloat16_flops"] or 0.0) / speeds["float32_flops"]
    return MachineProfile(
        memory_total=total_memory(),
        memory_available=available_memory(),
        bfloat16_pays=gain >= _PAYING_GAIN,
        **{name: value for name, value in identity.items() if name != "version"},
        **speeds,
    )


def _identity() -> dict[str, Any]:
    """What a measurement depends on; another identity is another machine."""
    import torch

    accelerated = torch.cuda.is_available()
    processor = _processor_name()
    return {
        "version": _VERSION,
        "processor": processor,
        "cores": core_count(),
        "threads": torch.get_num_threads(),
        "torch_version": str(torch.__version__),
        "device": "cuda" if accelerated else "cpu",
        "device_name": torch.cuda.get_device_name() if accelerated else processor,
        "device_memory": torch.cuda.get_device_properties(0).total_memory if accelerated else None,
    }


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def _measure(device: str) -> dict[str, Any]:
    return {
        "float32_flops": machine_speed.matmul_flops(device, "float32"),
        "bfloat16_flops": machine_speed.matmul_flops(device, "bfloat16")
        if machine_speed.has_bfloat16_products(device)
        else None,
        "copy_bandwidth": machine_speed.copy_bandwidth(device),
    }


def _read(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The cached speeds, or None where they are missing, damaged, or another machine's."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        speeds = stored["speeds"]
        if stored["identity"] != identity or set(speeds) != {"float32_flops", "bfloat16_flops", "copy_bandwidth"}:
            return None
        for name, value in speeds.items():
            if value is None and name == "bfloat16_flops":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return speeds


def _write(path: Path, content: dict[str, Any]) -> None:
    """Beside, then renamed, so that another process never reads half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(name, path)
    except OSError:
        return
