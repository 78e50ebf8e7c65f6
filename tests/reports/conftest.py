"""A run folder as the trainer leaves it, made up but in the real formats, with foreign text planted everywhere."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = '<script>document.title="owned"</script>'
IMAGE = "<img src=x onerror=\"document.title='owned'\">"
CLOSER = "</script></pre></title><script>document.title='owned'</script>\u2028]]>"

RECIPE = """budget = "2min"
seed = 0
model = "auto"
# {planted}

[data]
corpus = "essays {corpus}"

[optimizer]
name = "muon"

[schedule]
name = "wsd"
decay = 0.2

[[callbacks]]
name = "gradient_noise"
"""


def step_event(step: int, steps: int, noise: random.Random) -> dict:
    """One line of a run whose loss falls as a power law and whose rate warms up, stays and decays."""
    loss = 2.6 + 5.8 * (1 + step / 12) ** -0.6 + noise.gauss(0, 0.05)
    progress = step / steps
    factor = min(1.0, step / 20) * min(1.0, (1 - progress) / 0.2 + 1e-3)
    return {
        "event": "step",
        "step": step,
        "tokens": step * 4096,
        "seconds": round(step * 120 / steps + 2.0, 3),
        "flops": step * 4.1e10,
        "progress": progress,
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / 3.1,
        "lr": 0.02 * factor,
        "grad_norm": 0.4 * math.exp(noise.gauss(0, 0.25)) + (9.0 if step % 211 == 0 else 0.0),
        "param_norm": 40 + step / 100,
        "tokens_per_second": 20_500 + noise.gauss(0, 700),
        "mfu": 0.31 + noise.gauss(0, 0.01),
        "peak_memory": 812_000_000,
    }


def evaluation_event(step: int, steps: int) -> dict:
    """A held-out evaluation with its interval."""
    loss = 2.68 + 5.8 * (1 + step / 12) ** -0.6
    bits = loss / math.log(2) / 3.1
    return {
        "event": "evaluation",
        "step": step,
        "tokens": step * 4096,
        "seconds": round(step * 120 / steps + 2.0, 3),
        "held_out_loss": loss,
        "held_out_bits_per_byte": bits,
        "low": bits - 0.03,
        "high": bits + 0.03,
    }


def write_metrics(path: Path, steps: int = 600, *, finish: bool = True) -> None:
    """A whole course: one skipped step, one restored, ten evaluations."""
    noise = random.Random(0)
    every = max(1, steps // 10)
    with path.open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            print(json.dumps(step_event(step, steps, noise)), file=file)
            if step == steps // 3:
                print(json.dumps({"event": "skip", "step": step, "reason": f"non-finite gradient {IMAGE}"}), file=file)
            if step == steps // 2:
                print(json.dumps({"event": "restore", "step": step}), file=file)
            if step % every == 0:
                print(json.dumps(evaluation_event(step, steps)), file=file)
        if finish:
            print(json.dumps({"event": "finish", "step": steps, "seconds": 122.4, "tokens": steps * 4096}), file=file)


def plan() -> dict:
    """A plan as the planner writes it."""
    sizes = (("1M", 1.1e6, 61_000), ("2M", 2.2e6, 36_000), ("5M", 5.3e6, 21_000), ("10M", 1.05e7, 10_400))
    candidates = [
        {
            "model": name,
            "parameters": parameters,
            "tokens_per_second": speed,
            "tokens": speed * 118,
            "epochs": speed * 118 / 3.1e6,
            "predicted_bits_per_byte": bits,
            "low": bits - 0.08,
            "high": bits + 0.08,
            "measured": name in ("2M", "5M"),
        }
        for (name, parameters, speed), bits in zip(sizes, (1.52, 1.45, 1.38, 1.49), strict=True)
    ]
    chosen = {
        "model": "5M", "layers": 6, "width": 256, "heads": 4, "feed_forward": 704, "vocab_size": 4096,
        "context": 256, "batch_size": 16, "micro_batch": 16, "peak_lr": 0.02, "weight_decay": 0.1,
        "precision": "float32", "compile": False, "threads": 2, "steps": 605, "tokens": 605 * 4096,
        "epochs": 0.8, "tokens_per_second": 21_000, "warmup": 0.03,
        "predicted_bits_per_byte": 1.38, "predicted_low": 1.30, "predicted_high": 1.46,
    }  # fmt: skip
    reasons = {
        "model": "The law expects the lowest held-out loss of the four sizes that fit this machine.",
        "batch_size": "Sixteen windows fill both cores; more would buy no speed and cost steps.",
        "peak_lr": f"Transferred from width 128 by the rule of the optimizer {SCRIPT}",
        "steps": "What 118 s of training buy at the measured speed; 2 s are kept for evaluation.",
    }
    return {
        "chosen": chosen,
        "candidates": candidates,
        "reasons": reasons,
        "machine": {"cpu": "two cores", "peak_flops": 1.2e11, "memory": {"total": 16_000_000_000}},
        "law": {"form": "E + A/N^a + B/D^b", "parameters": {"E": 0.61, "a": 0.34, "b": 0.28}},
        "budget": "2min",
        "corpus": f"essays {SCRIPT}",
    }


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run of 600 steps."""
    folder = tmp_path / "first-run"
    folder.mkdir()
    recipe = RECIPE.format(planted=SCRIPT, corpus=SCRIPT.replace('"', "'"))
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    (folder / "plan.json").write_text(json.dumps(plan()), encoding="utf-8")
    environment = {
        "command": f"thalweg train 'essays {SCRIPT}' --budget 2min",
        "versions": {"thalweg": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "machine": {"system": "Linux", "cores": 2, "memory": 16_000_000_000},
        "started": "2026-01-02T03:04:05+00:00",
        "seed": 0,
    }
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    samples = [
        {"step": 300, "prompt": "The river", "text": " the the of a the"},
        {"step": 600, "prompt": "The river", "text": " bends where the ground is soft,\nand then it goes on.\n" * 4},
        {"step": 600, "prompt": "def main", "text": f"():\n    return {SCRIPT} {IMAGE} {CLOSER}"},
    ]
    (folder / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    write_metrics(folder / "metrics.jsonl")
    return folder


def beside(name: str) -> ModuleType:
    """A file of this folder that is no test: pytest does not make it importable."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def browsing() -> ModuleType:
    """browsing.py: pages parsed, and in a browser."""
    return beside("browsing")


@pytest.fixture(scope="session")
def comparison() -> ModuleType:
    """comparison_fixture.py: results of comparisons."""
    return beside("comparison_fixture")
