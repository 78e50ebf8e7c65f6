"""From a wanted size to the options of the steps: the gentlest setting whose files are small enough.

    0.4x      at most that share of the original's bytes on disk          120MB, 80MiB      at most so many bytes
    auto      as sparse as costs nothing: pruners get the essential sparsity of the model

What decides bytes on disk are the bits of quantizers, and the number of blocks that are dropped. Zeros cost as much as
other weights in the files that others read, so that a pruner alone reaches no target.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from thalweg import catalog
from thalweg.arms import Choice
from thalweg.budget import parse_bytes
from thalweg.errors import BudgetError, ModelError
from thalweg.models.compressed_layouts import layouts
from thalweg.models.compressed_tensors import stored_bytes
from thalweg.models.depth import remove_blocks
from thalweg.models.linears import linears_of
from thalweg.models.walker import named_blocks

# Widths that have a layout which stores them in that many bits, gentlest first.
STORED_BITS = (8, 7, 6, 5, 4, 3, 2)
DEFAULT = "gptq"


@dataclass(frozen=True)
class Target:
    """A wanted size.

    Attributes:
        share: of the original's bytes on disk, or None.
        bytes: on disk, or None. With neither, "auto".
    """

    share: float | None = None
    bytes: float | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read "0.4x", "120MB" or "auto"; `BudgetError` for anything else."""
        lowered = text.strip().lower()
        if lowered == "auto":
            return cls()
        if found := re.fullmatch(r"(\d*\.?\d+)\s*x", lowered):
            share = float(found.group(1))
            if 0 < share < 1:
                return cls(share=share)
        elif lowered.endswith("b") and (size := parse_bytes(lowered)) is not None:
            return cls(bytes=size)
        raise BudgetError(
            f"cannot read the size {text!r}", where="--target", fix="Write 0.4x (below 1), 120MB or auto."
        )

    def limit(self, source: Path) -> float:
        """Bytes on disk, for a model in this folder; infinite for "auto"."""
        if self.bytes is not None:
            return self.bytes
        return math.inf if self.share is None else self.share * weight_bytes(source)


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold the model's weights; a checkpoint has others, with the optimizer's state."""
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))


def weight_bytes(folder: Path) -> int:
    """What they take on disk."""
    return sum(path.stat().st_size for path in weight_files(folder))


def fitted(choices: list[Choice], target: Target, model: Any, source: Path, calibration: Tensor) -> list[Choice]:
    """The steps with options that meet a target; what the steps say themselves stays.

    Raises:
        BudgetError: nothing that may be changed makes the model small enough; the smallest that can be is named.
    """
    if target.share is None and target.bytes is None:
        return _as_sparse_as_costs_nothing(choices, model, calibration)
    original, limit = weight_bytes(source), target.limit(source)
    smallest, plain = math.inf, {}
    for candidate in _candidates(choices or [Choice(name=DEFAULT)], model):
        try:
            small = _as_if(candidate, model)
        except ModelError:  # more blocks than there are
            continue
        size = stored_bytes(small)
        if size <= limit:
            return candidate
        if size < smallest:
            smallest, plain = size, layouts(linears_of(small))[1]
    reason = f"; {len(plain)} layers are stored as plain weights: {next(iter(plain.values()))}" if plain else ""
    raise BudgetError(
        f"these steps cannot bring {megabytes(original)} below {megabytes(limit)}; "
        f"the smallest is {megabytes(smallest)} ({smallest / original:.2f}x){reason}",
        where="--target",
        fix="Leave open what a step may choose (gptq without bits=, llm_drop:what=block without count=), or add such a "
        "step; embeddings and head stay.",
    )


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.{1 if size >= 1e5 else 4}f} MB"


def _as_sparse_as_costs_nothing(choices: list[Choice], model: Any, calibration: Tensor) -> list[Choice]:
    """Pruners whose sparsity is open get the knee of the magnitude curve; without a pruner, it prunes itself."""
    if not choices:
        return [Choice(name="essential_sparsity")]
    open_ones = [c for c in choices if "sparsity" in catalog.lookup(c.name).options and "sparsity" not in c.options]
    if not open_ones:
        raise BudgetError(
            "auto finds a sparsity, and no step leaves one open", where="--target", fix='Write --with "wanda".'
        )
    found = catalog.resolve("essential_sparsity")().curve(model, calibration)["knee"]
    return [
        choice if choice not in open_ones else Choice(name=choice.name, options={**choice.options, "sparsity": found})
        for choice in choices
    ]


def _candidates(choices: list[Choice], model: Any) -> Iterator[list[Choice]]:
    """The steps with what they leave open set, gentlest first: bits, then the number of dropped blocks."""
    bits = [
        i
        for i, c in enumerate(choices)
        if "bits" in catalog.lookup(c.name).options and not {"bits", "format"} & {*c.options}
    ]
    # Halves that are dropped become zeros, which are stored like other weights.
    blocks = {i for i, c in enumerate(choices) if c.name == "llm_drop" and c.options.get("what") == "block"}
    drops = [i for i in blocks if "count" not in choices[i].options]
    counts = range(1, len(named_blocks(model))) if drops else [None]
    for count in counts:
        for width in STORED_BITS if bits else [None]:
            changed = {i: {"bits": width} for i in bits} | {i: {"count": count} for i in drops}
            yield [Choice(name=c.name, options={**c.options, **changed.get(i, {})}) for i, c in enumerate(choices)]


def _as_if(choices: list[Choice], model: Any) -> Any:
    """A copy of a model that takes as many bytes on disk as after these steps: it is rounded as they will round."""
    small = copy.deepcopy(model)
    for choice in choices:
        card = catalog.lookup(choice.name)
        if choice.name == "llm_drop" and choice.options.get("what") == "block":
            depth = len(named_blocks(small))
            count = float(choice.options.get("count", card.options["count"].default))
            # Which blocks go makes no difference to the size.
            remove_blocks(small, range(depth - catalog.module("llm_drop").number_of(count, depth), depth))
        elif card.family == "quantization":
            rounding = {k: v for k, v in choice.options.items() if k in catalog.lookup("rtn").options}
            own = {k: o.default for k, o in card.options.items() if k in catalog.lookup("rtn").options}
            catalog.resolve("rtn")(**{**own, **rounding}).compress(small, None)
    return small
