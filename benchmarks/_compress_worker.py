"""One compression in a process of its own, ours or llm-compressor's: time, peak memory, and the weights it leaves.

Started by compress.py with the interpreter that has the library; reads the calibration windows from a .npy file and
writes the model with plain weights (the compressed values), so that both sides are evaluated by the same code.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def ours(model: Any, windows: torch.Tensor, steps: str) -> None:
    from thalweg.arms import parse_steps

    for choice in parse_steps(steps):
        choice.build().compress(model, windows)


def theirs(model: Any, windows: torch.Tensor, steps: str) -> None:
    """The same step by llm-compressor 0.14: same numbers of bits, groups, symmetry, damping and block size."""
    from datasets import Dataset
    from llmcompressor import oneshot

    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in windows.tolist()]
    pipeline = "datafree" if steps.startswith("rtn") else "sequential"
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=recipe(steps),
        num_calibration_samples=len(rows),
        max_seq_length=windows.shape[1],
        shuffle_calibration_samples=False,
        pipeline=pipeline,
        batch_size=8,
    )


def recipe(steps: str) -> Any:
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    name, _, rest = steps.partition(":")
    said = dict(pair.split("=") for pair in rest.split(",")) if rest else {}
    if name in ("wanda", "sparsegpt"):
        kind = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[name]
        more = {"dampening_frac": 0.01} if name == "sparsegpt" else {}
        # A layer that is its own target is named "lm_head." inside: the plain name would not keep it from being pruned.
        return kind(sparsity=float(said["sparsity"]), targets=["Linear"], ignore=["re:.*lm_head"], **more)
    weights = {
        "num_bits": int(said["bits"]),
        "type": "int",
        "symmetric": said.get("symmetric", "true") == "true",
        "strategy": "group" if int(said["group"]) else "channel",
        **({"group_size": int(said["group"])} if int(said["group"]) else {}),
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    if name == "awq":
        return [
            AWQModifier(duo_scaling=False, offload_device=None),
            QuantizationModifier(config_groups=groups, ignore=["lm_head"]),
        ]
    if name == "rtn":
        return QuantizationModifier(config_groups=groups, ignore=["lm_head"])
    return GPTQModifier(config_groups=groups, ignore=["lm_head"], dampening_frac=0.01, block_size=128)


def main() -> None:
    who, folder, steps, windows, out = sys.argv[1:6]
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(sys.argv[6]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    calibration = torch.from_numpy(np.load(windows))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, worked = time.perf_counter(), time.process_time()
    {"thalweg": ours, "llmcompressor": theirs}[who](model, calibration, steps)
    told = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
        "more_memory": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
    }
    weights = {name: p.detach() for name, p in model.named_parameters()}
    if who == "llmcompressor":
        weights = plain(model)
    from safetensors.torch import save_file

    save_file({name: value.contiguous().clone() for name, value in weights.items()}, out)
    Path(out).with_suffix(".json").write_text(json.dumps(told))


def plain(model: Any) -> dict[str, torch.Tensor]:
    """Weights as they compute, whether they are still to be rounded, packed or plain."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    found = {}
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        for own, value in module.named_parameters(recurse=False):
            if own.startswith(("weight_scale", "weight_zero_point", "weight_g_idx", "weight_global")):
                continue
            if own == "weight" and scheme is not None and scheme.weights is not None:
                zero = getattr(module, "weight_zero_point", None)
                value = fake_quantize(value.detach(), module.weight_scale, zero, scheme.weights)
            found[f"{name}.{own}" if name else own] = value.detach()
    return found


if __name__ == "__main__":
    main()
