"""How many cores and how much memory this process may really use.

A container sees the whole host's cores and memory in most places and is stopped or killed at its own, smaller
limits. The limits are files: those of version 2 of Linux control groups, of version 1 where there is no
version 2, each for the process's own group and every group above it. The smallest counts.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_MEMORY = Path("/proc/meminfo")
# Version 1 writes "no limit" as the largest page-aligned number.
_UNLIMITED = 1 << 60


def core_count(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Cores this process may keep busy: its affinity, or the container's quota rounded up if that is less."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(groups, membership)]
    return max(1, min([cores, *quotas]))


def _quotas(groups: Path, membership: Path) -> list[float]:
    quotas = []
    for folder in _folders(groups, membership, "cpu"):
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0] != "max":
            quotas.append(_number(words[0]) / _number(words[1]))
        quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
        if quota and period:
            quotas.append(_number(quota[0]) / _number(period[0]))
    return [quota for quota in quotas if math.isfinite(quota) and quota > 0]


def total_memory(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP, memory: Path = _MEMORY) -> int:
    """Bytes this process may use at most: the machine's memory, or the container's limit if that is less."""
    limits = [limit for limit, _ in _memory_limits(groups, membership)]
    return int(min([_meminfo(memory, "MemTotal"), *limits]))


def available_memory(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP, memory: Path = _MEMORY) -> int:
    """Bytes free now, with caches that the kernel would give up counted as free, within the container's
    limit."""
    left = [max(limit - used, 0.0) for limit, used in _memory_limits(groups, membership)]
    return int(min([_meminfo(memory, "MemAvailable"), *left]))


def _memory_limits(groups: Path, membership: Path) -> list[tuple[float, float]]:
    """(limit, used) of each group that has a limit, file caches not counted as used."""
    found = []
    for folder in _folders(groups, membership, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _words(folder / limit_name), _words(folder / used_name)
            if limit and limit[0] != "max" and _number(limit[0]) < _UNLIMITED:
                taken = _number(used[0]) if used else 0.0
                found.append((_number(limit[0]), taken - _file_cache(folder)))
    return [(limit, used) for limit, used in found if limit > 0 and math.isfinite(used)]


def _file_cache(folder: Path) -> float:
    """Bytes of file cache that the kernel drops before it refuses memory."""
    pairs = [line.split() for line in _text(folder / "memory.stat").splitlines()]
    values = {pair[0]: _number(pair[1]) for pair in pairs if len(pair) == 2}
    return values.get("total_inactive_file", values.get("inactive_file", 0.0))


def _folders(groups: Path, membership: Path, controller: str) -> list[Path]:
    """The process's control group and all groups above it, for one controller."""
    found: list[Path] = []
    for line in _text(membership).splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            root = groups
        elif controller in controllers.split(","):
            root = groups / controller
        else:
            continue
        # Inside a container the path may be the host's and lead nowhere; the root is then the container's
        # own.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return found


def _meminfo(memory: Path, key: str) -> float:
    for line in _text(memory).splitlines():
        if line.startswith(f"{key}:"):
            return _number(line.split()[1]) * 1024
    pages = "SC_PHYS_PAGES" if key == "MemTotal" else "SC_AVPHYS_PAGES"
    try:
        return float(os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _number(text: str) -> float:
    """A number, or not-a-number for what the kernel never writes."""
    try:
        return float(text)
    except ValueError:
        return math.nan
