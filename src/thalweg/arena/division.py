"""How to divide a machine among runs: many with a thread each, or few with many threads, whichever is faster.

A small model's step is too short to be divided among threads: they wait for each other more than they work. Which
division trains the most tokens a second in all is measured, every slot at work at the same time as in earnest, and kept
in the cache folder for the next comparison of the same shape.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.planner.machine_limits import available_memory

PROBE_SECONDS = 2.0
# Of the memory that is free, what runs side by side may take.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Division:
    """So many runs at a time, each with so many threads, and why."""

    slots: int
    threads: int
    reason: str


def probe(recipe: str, chosen: dict[str, Any], threads: int, seconds: float) -> dict[str, float]:
    """Train on random tokens for some seconds: tokens a second, and the process's memory peak in bytes.

    Args:
        recipe: as TOML.
        chosen: the plan's decisions.
        threads: to compute with.
    """
    import tomllib

    import torch

    from thalweg.planner.measure import work
    from thalweg.recipe import Recipe
    from thalweg.sessions.assemble import build_model
    from thalweg.training import process

    process.keep_freed_memory()
    process.set_threads(threads)
    cpu = torch.device("cpu")
    model = build_model(chosen, 0)
    parsed = Recipe.validated(tomllib.loads(recipe), where="probe")
    shape = (chosen["vocab_size"], chosen["context"], chosen["micro_batch"], chosen["precision"])
    forward_backward, step = work(model, parsed, *shape, cpu)
    passes = -(-chosen["batch_size"] // chosen["micro_batch"])
    forward_backward()
    step()
    began, steps = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        for _ in range(passes):
            forward_backward()
        step()
        steps += 1
    rate = steps * chosen["batch_size"] * chosen["context"] / (time.monotonic() - began)
    return {"tokens_per_second": rate, "peak_memory": process.peak_memory(cpu)}


def divisions(cores: int, most: int) -> list[tuple[int, int]]:
    """(slots, threads) worth trying: one run with all cores, and halvings of the threads down to one each."""
    found = [(1, cores)]
    threads = cores
    while threads > 1:
        threads = max(threads // 2, 1)
        found.append((min(cores // threads, most), threads))
    return list(dict.fromkeys(found))


def divide(
    cores: int,
    most: int,
    job: dict[str, Any],
    ask: Callable[[dict[str, Any], int], dict[str, Any]],
    cache: Path,
) -> Division:
    """Choose by measurement.

    Args:
        cores: to be divided.
        most: runs there are at all.
        job: the probe's `recipe` and `chosen`.
        ask: does a job on the slot of that number and returns the answer.
        cache: folder for what was measured before.
    """
    tried = divisions(cores, most)
    if len(tried) == 1:
        return Division(*tried[0], "one run at a time with all there is")
    shape = {name: job["chosen"].get(name) for name in ("model", "context", "batch_size", "micro_batch", "precision")}
    identity = json.dumps([shape, job["recipe"], cores, tried], sort_keys=True)
    path = cache / "divisions" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
    rates = _read(path) or _measured(tried, job, ask)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rates), encoding="utf-8")
    best = max(range(len(tried)), key=lambda index: rates[index])
    slots, threads = tried[best]
    if best == 0:
        second = max(rates[1:])
        gain = f": {rates[0] / second:.2f} times the tokens/s of several side by side (measured)" if second else ""
        return Division(slots, threads, f"one run at a time on {cores} threads{gain}")
    each = "a thread" if threads == 1 else f"{threads} threads"
    gain = (
        f": {rates[best] / rates[0]:.2f} times the tokens/s of one run on {cores} threads (measured)"
        if rates[0]
        else ""
    )
    return Division(slots, threads, f"{slots} runs at a time, {each} each{gain}")


def _measured(
    tried: list[tuple[int, int]], job: dict[str, Any], ask: Callable[[dict[str, Any], int], dict[str, Any]]
) -> list[float]:
    """Tokens a second in all, for each division; 0 where it failed or would not fit into memory."""
    rates = []
    peak = 0.0
    for slots, threads in tried:
        if slots * peak > MEMORY_SHARE * available_memory():
            rates.append(0.0)
            continue
        said = {**job, "kind": "probe", "threads": threads, "seconds": PROBE_SECONDS, "log": os.devnull}
        with ThreadPoolExecutor(slots) as pool:
            answers = list(pool.map(lambda slot, said=said: ask(said, slot), range(slots)))
        peak = max([peak, *(answer.get("peak_memory", 0.0) for answer in answers)])
        rates.append(sum(answer.get("tokens_per_second", 0.0) for answer in answers))
    return rates


def _read(path: Path) -> list[float] | None:
    try:
        rates = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return rates if isinstance(rates, list) and all(isinstance(rate, float) for rate in rates) else None
