"""Models whose weights compressed-tensors has packed on disk: made ordinary ones when they are read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from thalweg.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_packed(folder: Path) -> bool:
    """Whether config.json says that compressed-tensors has packed the weights."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config") or {}
        return said.get("quant_method") == "compressed-tensors"
    except (OSError, ValueError, AttributeError):
        return False  # what is wrong with the folder is said by who reads it


def check_installed(folder: Path) -> None:
    """Raises ModelError, with what to do, where compressed-tensors is not installed."""
    if importlib.util.find_spec("compressed_tensors") is None:
        raise ModelError(
            "Packed weights are read and written with compressed-tensors, which is not installed.",
            where=str(folder),
            fix='pip install "thalweg[compress]"',
        )


def decompressed(model: PreTrainedModel) -> None:
    """Make an ordinary model, in place, of one that transformers has read packed; others stay as they are.

    Where activations are quantized, too, it is left alone: without its quantizer it would compute something else.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is None or not hasattr(quantizer, "compressor"):
        return
    groups = quantizer.quantization_config.quantization_config.config_groups.values()
    if any(group.input_activations or group.output_activations for group in groups):
        return
    from compressed_tensors.compressors.base import decompress_module

    dtype = model.dtype
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            decompress_module(module, leave_decompressed=False)
            module.weight = nn.Parameter(module.weight.detach().to(dtype))  # type: ignore[operator]
            module.requires_grad_(True)
    quantizer.compressor.remove_decompression_hook(model)
    quantizer.remove_quantization_config(model)
