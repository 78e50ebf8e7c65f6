"""Compressed models on disk, as others read them: safetensors in the layouts of the compressed-tensors library.

A folder that `save_compressed` has written loads with `AutoModelForCausalLM.from_pretrained`, through transformers' own
quantizer, where compressed-tensors is installed. Weights without a layout there are written as they are, and a model
that has no others is an ordinary folder, which needs nothing. An architecture that cannot be built with packed weights
has all of them written as they are.

Scales are stored in the model's type. Weights that were rounded with scales of a wider type therefore come back
with the rounding of their scales: `largest_change` says how much that is. It is 0 where the scales were of that type.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thalweg.models.compressed_layouts import Layout, Spec, layouts, packed, read_back, scheme
from thalweg.models.decompression import check_installed
from thalweg.models.folder import no_progress_bars, save
from thalweg.models.linears import Linear, linears_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What safetensors calls them, in the reverse of the order in which it writes them.
_TYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip
_ORDER = {dtype: -place for place, dtype in enumerate(_TYPES)}


def save_compressed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: str | Path
) -> dict[str, Any]:
    """Write a compressed model so that others read it, in as few bytes as their layouts allow.

    Args:
        model: its linear layers carry what was decided about them (`Linear.fixed`); left as it is.
        tokenizer: None writes the model only.
        folder: made if missing; files of the same names are replaced.

    Returns:
        "layout" ("compressed-tensors" or "plain"), "formats" (how many layers in which layout), "plain" (by reason, the
        layers that were compressed and are written as they are), "largest_change" (of a weight when read back, as a
        share of the largest of its layer), "weight_bytes" (what the safetensors files take) and "bytes" (what all
        files of the folder take).

    Raises:
        ModelError: the folder cannot be made, or there are layouts and compressed-tensors is not installed.
    """
    folder = Path(folder)
    linears = linears_of(model)
    found, reasons = layouts(linears)
    change = 0.0
    if found:
        check_installed(folder)
        change = _save_packed(model, tokenizer, folder, found)
        if trouble := _unreadable(folder):
            reasons |= dict.fromkeys(found, f"packed, transformers cannot load this architecture ({trouble})")
            found, change = {}, 0.0
            for path in folder.glob("model*.safetensors*"):
                path.unlink()
    if not found:
        save(model, tokenizer, folder)
    return {
        "layout": "compressed-tensors" if found else "plain",
        "formats": _counted(found),
        "plain": _by_reason(reasons),
        "largest_change": change,
        "weight_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
    }


def _save_packed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, found: dict[str, Layout]
) -> float:
    """Write a model whose layers are packed in these layouts; the largest change of a weight when it is read back."""
    linears, change = linears_of(model), 0.0
    state = {name: value.detach() for name, value in model.state_dict().items()}
    for name, layout in found.items():
        weight = state.pop(f"{name}.weight")
        tensors = _packed(linears[name], layout)
        change = max(change, _change(read_back(tensors, layout, weight.dtype), weight))
        state |= {f"{name}.{end}": value.to(weight.device) for end, value in tensors.items()}
    save(model, tokenizer, folder, state_dict=state)
    _add_to_config(folder / "config.json", _configuration(found, linears))
    return change


def _unreadable(folder: Path) -> str:
    """What an architecture of transformers' asks of weights that are packed and have it no more; "" where nothing.

    Found by building it on the meta device, which takes no memory.
    """
    from transformers import AutoModelForCausalLM

    # Nothing else counts: sizes of packed weights are not known there, and what a machine lacks is no fault of theirs.
    with no_progress_bars(packed=True), suppress(ImportError, OSError, RuntimeError, ValueError):
        try:
            AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, device_map="meta")
        except AttributeError as error:
            return str(error)
    return ""


def stored_bytes(model: nn.Module) -> int:
    """What the safetensors files of `save_compressed` will take, without writing them; needs no library."""
    linears = linears_of(model)
    found, _ = layouts(linears)
    specs: dict[str, Spec] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, value in model.state_dict().items():
        owner, _, end = name.rpartition(".")
        if end == "weight" and owner in found:
            rows, columns = linears[owner].shape
            own = found[owner].specs(rows, columns, value.dtype)
            specs |= {f"{owner}.{part}": spec for part, spec in own.items()}
        elif (place := (value.data_ptr(), tuple(value.shape))) not in seen:
            seen.add(place)  # tied tables are stored once
            specs[name] = (value.dtype, tuple(value.shape))
    return _file_bytes(specs)


def _file_bytes(specs: dict[str, Spec]) -> int:
    """Of one safetensors file: 8 bytes, a header in JSON that ends at a multiple of 8, the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The order decides how many digits the offsets have.
    for name, (dtype, shape) in sorted(specs.items(), key=lambda item: (_ORDER[item[1][0]], item[0])):
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text // 8) * 8 + end


def _packed(linear: Linear, layout: Layout) -> dict[str, Tensor]:
    assert linear.fixed.quantized is not None
    return packed(linear.fixed.quantized, layout, linear.weight.dtype)


def _change(read: Tensor, weight: Tensor) -> float:
    largest = float(weight.abs().max())
    return float((read.double() - weight.double()).abs().max()) / largest if largest else 0.0


def _configuration(found: dict[str, Layout], linears: dict[str, Linear]) -> dict[str, Any]:
    """`quantization_config` of config.json."""
    import compressed_tensors
    from compressed_tensors.quantization import QuantizationConfig

    by_layout: dict[Layout, list[str]] = defaultdict(list)
    for name, layout in found.items():
        by_layout[layout].append(name)
    # With one layout: all layers of that class but these, which is how such models are usually described.
    alone = len(by_layout) == 1
    groups = {
        f"group_{number}": scheme(layout, ["Linear"] if alone else names)
        for number, (layout, names) in enumerate(by_layout.items())
    }
    config = QuantizationConfig(
        config_groups=groups,
        format=next(iter(by_layout)).format if alone else "mixed-precision",
        quantization_status="compressed",
        ignore=[name for name in linears if name not in found],
    )
    said = json.loads(config.model_dump_json())
    # transformers is to decompress while it reads: what it does later knows no packed zero points. It does so with the
    # first group's scheme for all layers, so that it may not where there are several.
    return {**said, "dequantize": alone, "version": compressed_tensors.__version__}


def _add_to_config(path: Path, said: dict[str, Any]) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = said
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _counted(found: dict[str, Layout]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for layout in found.values():
        counts[str(layout)] += 1
    return dict(counts)


def _by_reason(reasons: dict[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        names[reason].append(name)
    return dict(names)
