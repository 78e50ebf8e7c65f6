"""One compression in a process of its own, ours or a peer's: time, peak memory, and the weights it leaves.

Started by compress.py with the interpreter that has the library; reads the calibration windows from a .npy file and
writes the model with plain weights (the compressed values), so that both sides are evaluated by the same code.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch


def ours(model: Any, windows: torch.Tensor, steps: str) -> Callable[[], None]:
    """What is timed, with everything imported."""
    from thalweg.arms import parse_steps

    built = [choice.build() for choice in parse_steps(steps)]

    def work() -> None:
        for step in built:
            step.compress(model, windows)

    return work


def llmcompressor(model: Any, windows: torch.Tensor, steps: str) -> Callable[[], Any]:
    """The same step by llm-compressor 0.14: same numbers of bits, groups, symmetry, damping and block size."""
    from datasets import Dataset
    from llmcompressor import oneshot

    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in windows.tolist()]
    pipeline = "datafree" if steps.startswith("rtn") else "sequential"
    return partial(
        oneshot,
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

    name, said = spelled(steps)
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


def spelled(step: str) -> tuple[str, dict[str, str]]:
    name, _, rest = step.partition(":")
    return name, dict(pair.split("=") for pair in rest.split(",")) if rest else {}


def gptqmodel(folder: str, step: str) -> Any:
    """A model of gptqmodel 7.7 that is going to be quantized by this step, with the same numbers."""
    from gptqmodel import GPTQModel, QuantizeConfig

    name, said = spelled(step)
    if name not in ("gptq", "awq", "foem"):
        raise SystemExit(f"gptqmodel has no {name}")
    group = int(said["group"]) or -1
    same = {"bits": int(said["bits"]), "group_size": group, "device": "cpu", "offload_to_disk": False}
    if name == "awq":
        return GPTQModel.load(folder, QuantizeConfig(method="awq", format="gemm", sym=False, **same))
    own = {"desc_act": True, "act_group_aware": False, "damp_percent": 0.01, "true_sequential": False}
    # Of version 1 the zero points are one less than they compute with, until the file is read again.
    return GPTQModel.load(folder, QuantizeConfig(format="gptq_v2", sym=True, **own, **same))


def main() -> None:
    who, folder, steps, windows, out = sys.argv[1:6]
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(sys.argv[6]))
    calibration = torch.from_numpy(np.load(windows))
    if who == "gptqmodel":
        loaded = gptqmodel(folder, steps)
        rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in calibration.tolist()]
        work = partial(loaded.quantize, rows, batch_size=8)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        work = {"thalweg": ours, "llmcompressor": llmcompressor}[who](model, calibration, steps)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, worked = time.perf_counter(), time.process_time()
    work()
    told = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
        "peak_memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "more_memory": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
    }
    if who == "gptqmodel":
        weights = unpacked(loaded.model)
    else:
        weights = plain(model) if who == "llmcompressor" else dict(model.named_parameters())
    from safetensors.torch import save_file

    save_file({name: value.detach().contiguous().clone() for name, value in weights.items()}, out)
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


@torch.no_grad()
def unpacked(model: Any) -> dict[str, torch.Tensor]:
    """Weights of gptqmodel's packed layers as they compute, and all others."""
    found = dict(model.named_parameters())
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            # What the layer makes of the unit vectors: its weights, whatever its packing.
            found[f"{name}.weight"] = module(torch.eye(module.in_features)).T.float()
    return found


if __name__ == "__main__":
    main()
