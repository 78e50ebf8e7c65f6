"""The machine profile: limits of containers, a cache that is checked, speeds that were measured."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch

from thalweg.planner import machine_speed
from thalweg.planner.machine_limits import available_memory, core_count, total_memory
from thalweg.planner.profile import MachineProfile, profile


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def quick(monkeypatch):
    """Speeds without the waiting, and a count of the measurements."""
    calls = []
    monkeypatch.setattr(machine_speed, "matmul_flops", lambda device, dtype: calls.append(dtype) or 1e11)
    monkeypatch.setattr(machine_speed, "copy_bandwidth", lambda device: 1e10)
    return calls


def test_version_two_quota_limits_cores(tmp_path):
    group = tmp_path / "groups"
    membership = put(tmp_path / "cgroup", "0::/outer/inner\n")
    put(group / "outer/inner/cpu.max", "max 100000\n")
    put(group / "outer/cpu.max", "50000 100000\n")
    assert core_count(group, membership) == 1
    put(group / "outer/cpu.max", "100000000 100000\n")
    assert core_count(group, membership) == len(os.sched_getaffinity(0))


def test_version_one_limits(tmp_path):
    group = tmp_path / "groups"
    membership = put(tmp_path / "cgroup", "5:memory:/job\n3:cpu,cpuacct:/job\n0::/\n")
    put(group / "cpu/job/cpu.cfs_quota_us", "100000\n")
    put(group / "cpu/job/cpu.cfs_period_us", "100000\n")
    put(group / "memory/job/memory.limit_in_bytes", "1000000\n")
    put(group / "memory/job/memory.usage_in_bytes", "700000\n")
    put(group / "memory/job/memory.stat", "cache 5\ntotal_inactive_file 200000\n")
    put(group / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    meminfo = put(tmp_path / "meminfo", "MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: 4000000 kB\n")
    assert core_count(group, membership) == 1
    assert total_memory(group, membership, meminfo) == 1_000_000
    assert available_memory(group, membership, meminfo) == 500_000


def test_without_groups_the_machine_itself_counts(tmp_path):
    meminfo = put(tmp_path / "meminfo", "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n")
    nothing = tmp_path / "none"
    assert total_memory(nothing, nothing, meminfo) == 8_192_000_000
    assert available_memory(nothing, nothing, meminfo) == 4_096_000_000
    assert core_count(nothing, nothing) == len(os.sched_getaffinity(0))
    assert total_memory(nothing, nothing, nothing) > 1e8


def test_damaged_limit_files_are_ignored(tmp_path):
    group = tmp_path / "groups"
    membership = put(tmp_path / "cgroup", "0::/job\nnonsense\n")
    put(group / "job/cpu.max", "lots really\n")
    put(group / "job/memory.max", "many\n")
    meminfo = put(tmp_path / "meminfo", "MemTotal: 10 kB\nMemAvailable: 5 kB\n")
    assert core_count(group, membership) == len(os.sched_getaffinity(0))
    assert total_memory(group, membership, meminfo) == 10_240


def test_measured_once_then_cached(tmp_path, quick):
    first = profile(cache=tmp_path)
    measured = len(quick)
    second = profile(cache=tmp_path)
    assert measured in (1, 2)
    assert len(quick) == measured
    same = {"memory_available": 0}
    assert dataclasses.replace(first, **same) == dataclasses.replace(second, **same)
    profile(refresh=True, cache=tmp_path)
    assert len(quick) == 2 * measured


@pytest.mark.parametrize("damage", ["not json", "{}", "[]", "nan", "negative", "other machine", "missing", "text"])
def test_a_bad_cache_is_measured_anew(tmp_path, quick, damage):
    good = profile(cache=tmp_path)
    measured = len(quick)
    (path,) = (tmp_path / "machines").glob("*.json")
    content = json.loads(path.read_text())
    if damage in ("not json", "{}", "[]"):
        path.write_text(damage)
    else:
        values = {"nan": float("nan"), "negative": -1.0, "text": "fast"}
        if damage == "other machine":
            content["identity"]["cores"] += 1
        elif damage == "missing":
            del content["speeds"]["copy_bandwidth"]
        else:
            content["speeds"]["copy_bandwidth"] = values[damage]
        path.write_text(json.dumps(content))
    again = profile(cache=tmp_path)
    assert len(quick) == 2 * measured
    assert again.copy_bandwidth == good.copy_bandwidth == 1e10
    assert json.loads(path.read_text())["speeds"]["copy_bandwidth"] == 1e10


def test_thread_count_is_part_of_the_identity(tmp_path, quick, monkeypatch):
    profile(cache=tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert profile(cache=tmp_path).threads == 77
    assert len(list((tmp_path / "machines").glob("*.json"))) == 2


def test_cache_folder_from_the_environment(tmp_path, quick, monkeypatch):
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "elsewhere"))
    profile()
    assert len(list((tmp_path / "elsewhere/machines").glob("*.json"))) == 1


def test_an_unwritable_cache_is_no_error(tmp_path, quick):
    blocked = put(tmp_path / "file", "")
    assert profile(cache=blocked).float32_flops == 1e11


@pytest.mark.parametrize(("half", "pays"), [(None, False), (1.2e11, False), (1.4e11, True)])
def test_bfloat16_pays_from_three_tenths_gain(tmp_path, monkeypatch, half, pays):
    rates = {"float32": 1e11, "bfloat16": half}
    monkeypatch.setattr(machine_speed, "matmul_flops", lambda device, dtype: rates[dtype])
    monkeypatch.setattr(machine_speed, "copy_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(machine_speed, "has_bfloat16_products", lambda device: half is not None)
    found = profile(cache=tmp_path)
    assert found.bfloat16_flops == half
    assert found.bfloat16_pays is pays


def test_the_fastest_trial_counts(monkeypatch):
    times = iter([9.0, 5.0, 3.0, 4.0, 6.0])
    monkeypatch.setattr(machine_speed, "_timed_cpu", lambda work: next(times))
    assert machine_speed._fastest(lambda: None, "cpu", 0.0) == 3.0


def test_real_measurement_is_plausible(tmp_path):
    found = profile(cache=tmp_path)
    assert isinstance(found, MachineProfile)
    # Between a slow core under load and the fastest accelerators there are.
    assert 1e8 < found.float32_flops < 1e16
    assert 1e8 < found.copy_bandwidth < 1e14
    assert 0 < found.memory_available <= found.memory_total
    assert found.cores >= 1
    assert json.loads(json.dumps(found.to_dict()))["threads"] == torch.get_num_threads()
