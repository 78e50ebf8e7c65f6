"""What of a compressed model may be trained without undoing what was decided: biases, norms, LoRA on what has a mask.

    biases   every parameter named bias, wherever it is
    norms    the parameters of modules without children whose parameters all are vectors and which are no linear layers
    lora     a form of `masked_lora.py` on every linear layer that is not quantized; its mask is the recorded one
             (`Linear.fixed.mask`), and where none is recorded, what is not zero now
    head     LoRA on the output table, unless that is the table of the embeddings, too, or quantized

A vector that is a bias and belongs to a norm counts once. Source: the groups of "PERP: Rethinking the Prune-Retrain
Paradigm in the Era of LLMs" (2023, arXiv:2312.15230).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from thalweg.methods.pruning.masked_lora import Form, LoRA, MaskLoRA, ScaleLoRA
from thalweg.models.linears import Linear


@dataclass
class Parts:
    """What is trained of a model or of a block.

    Attributes:
        biases, norms: parameters of the model.
        forms: linear layers with the forms of their weights.
        head: the same of the output table; at most one.
        notes: what was left alone, and why.
    """

    biases: list[nn.Parameter] = field(default_factory=list)
    norms: list[nn.Parameter] = field(default_factory=list)
    forms: list[tuple[Linear, Form]] = field(default_factory=list)
    head: list[tuple[Linear, Form]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def adapters(self) -> list[tuple[Linear, Form]]:
        return [*self.forms, *self.head]

    @property
    def parameters(self) -> list[Tensor]:
        own = [parameter for _, form in self.adapters for parameter in form.parameters()]
        return [*self.biases, *self.norms, *own]

    def counts(self) -> dict[str, int]:
        """Trained numbers of each group."""
        groups = {
            "biases": self.biases,
            "norms": self.norms,
            "lora": [parameter for _, form in self.forms for parameter in form.parameters()],
            "head": [parameter for _, form in self.head for parameter in form.parameters()],
        }
        return {name: sum(one.numel() for one in group) for name, group in groups.items()}


@dataclass(frozen=True)
class Choice:
    """Which groups, and how; the options of PERP by their names."""

    lora: str
    biases: bool
    norms: bool
    rank: int
    alpha: float

    def parts(self, module: nn.Module, linears: dict[str, Linear], generator: torch.Generator) -> Parts:
        """What is trained of a module: its vectors, and of these linear layers their weights."""
        parts = Parts()
        self._take_vectors(parts, module)
        if self.lora == "none":
            return parts
        quantized = [linear for linear in linears.values() if linear.fixed.quantized is not None]
        inferred = 0
        for linear in linears.values():
            if linear.fixed.quantized is None:
                mask = linear.fixed.mask
                inferred += mask is None
                mask = linear.weight != 0 if mask is None else mask
                parts.forms.append((linear, self._form(linear.weight, mask, generator)))
        for linear in quantized:
            linear.fixed.notes.append("perp: the weight is quantized and was not retrained")
        if quantized:
            parts.notes.append(f"{len(quantized)} linear layers are quantized: their weights were left as they are")
        if inferred:
            parts.notes.append(f"{inferred} linear layers have no recorded mask: zeros at the start stayed zero")
        return parts

    def add_head(self, parts: Parts, model: Any, generator: torch.Generator) -> None:
        """LoRA on the output table, or a note why not."""
        module = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if not isinstance(module, nn.Linear):
            parts.notes.append("the head was left as it is: no linear layer")
            return
        linear, inputs = Linear("head", module), model.get_input_embeddings()
        if module.weight is getattr(inputs, "weight", None):
            parts.notes.append("the head was left as it is: its table is that of the embeddings, too")
        elif linear.fixed.quantized is not None:
            parts.notes.append("the head was left as it is: it is quantized")
        else:
            form = LoRA(linear.weight, linear.fixed.mask, self.rank, self.alpha, generator)
            parts.head.append((linear, form))

    def _form(self, weight: Tensor, mask: Tensor, generator: torch.Generator) -> Form:
        if self.lora == "scale_lora":
            return ScaleLoRA(weight, self.rank)
        kind = {"lora_prune": LoRA, "mask_lora": MaskLoRA}[self.lora]
        return kind(weight, mask, self.rank, self.alpha, generator)

    def _take_vectors(self, parts: Parts, module: nn.Module) -> None:
        taken: set[int] = set()
        for child in module.modules():
            own = dict(child.named_parameters(recurse=False))
            norm = _is_norm(child, own)
            for name, parameter in own.items():
                if id(parameter) in taken or parameter.ndim != 1 or not parameter.is_floating_point():
                    continue
                if norm and self.norms:
                    parts.norms.append(parameter)
                elif name == "bias" and self.biases:
                    parts.biases.append(parameter)
                else:
                    continue
                taken.add(id(parameter))


def _is_norm(module: nn.Module, own: dict[str, nn.Parameter]) -> bool:
    return (
        bool(own)
        and not isinstance(module, nn.Linear | Conv1D)
        and next(module.children(), None) is None
        and all(parameter.ndim == 1 for parameter in own.values())
    )
