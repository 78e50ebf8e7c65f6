"""Where a run happened: versions, machine, command. Written to environment.json."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("thalweg", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pydantic")


def describe(machine: dict[str, Any], world_size: int) -> dict[str, Any]:
    """The environment of this process as plain data."""
    return {
        "command": command(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "ranks": world_size,
        "machine": machine,
    }


def command() -> str:
    """The command line of this process as a user would type it."""
    program, *arguments = sys.argv
    name = Path(program).name
    typed = ["thalweg", *arguments] if name in ("thalweg", "__main__.py") else ["python", program, *arguments]
    ranks = os.environ.get("WORLD_SIZE")
    if ranks and typed[0] == "thalweg" and "TORCHELASTIC_RUN_ID" in os.environ:
        typed = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", ranks), "-m", *typed]
    return shlex.join(typed)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
