"""What the weights of a layer are rounded to, as options of this family say it, and which weights may be rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from thalweg import catalog
from thalweg.errors import ModelError, RecipeError
from thalweg.models.linears import Linear
from thalweg.numerics.float_formats import format_of
from thalweg.numerics.number_formats import Fit, Format, Quantized, narrowed, rounded
from thalweg.numerics.range_search import searched


@dataclass(frozen=True)
class Grids:
    """A format and how its scales are shared.

    Attributes:
        format: of the elements.
        group: a scale for every so many inputs of a row; 0 for a whole row.
        fit: the rule for scales.
    """

    format: Format
    group: int
    fit: Fit

    def group_for(self, inputs: int) -> tuple[int, list[str]]:
        """The group in a layer of so many inputs, and what there is to say about it."""
        if self.format.block or not self.group or inputs % self.group == 0:
            return self.format.block or self.group or inputs, []
        return inputs, [f"{inputs} inputs are no multiple of the group of {self.group}: one scale for a whole row"]

    def stored_in(self, dtype: torch.dtype) -> Grids:
        """With scales of the type that a model's files hold them in."""
        return replace(self, fit=narrowed(self.fit, dtype))

    def nearest(self, weight: Tensor, keep: Tensor | None) -> tuple[Quantized, list[str]]:
        """A weight [out, in] rounded to nearest, 0 where it is not kept, and what there is to say about it."""
        group, notes = self.group_for(weight.shape[1])
        quantized = rounded(weight, self.format, group, self.fit)
        return (quantized if keep is None else quantized.zeroed(~keep)), notes


def grids_of(card: str, options: Mapping[str, Any]) -> Grids:
    """From the options `bits`, `group`, `symmetric`, `format` and `search` of a method.

    Args:
        card: the method's name.
        options: all options of its constructor.

    Raises:
        RecipeError: a value that is not allowed, or one that the format leaves no choice about.
    """
    known = catalog.lookup(card)
    known.check(options, where=card)
    format = format_of(options["format"], options["bits"], options["symmetric"])
    if options["format"] != "int":
        # A value that is the default may just not have been given.
        fixed = {"bits": format.bits, "symmetric": True} | ({"group": format.block} if format.block else {})
        for key, value in fixed.items():
            if options[key] not in (value, known.options[key].default):
                raise RecipeError(
                    f"{format.name} has {key}={str(value).lower()}, not {str(options[key]).lower()}",
                    where=f"{card}:{key}",
                    fix=f"Leave out {key}, or choose format=int.",
                )
    return Grids(format, options["group"], searched(format) if options["search"] else format.fit)


def roundable(linear: Linear, where: str) -> tuple[Tensor, Tensor | None]:
    """The weight [out, in] in float32, and the mask of what was not pruned before.

    Raises:
        ModelError: it is quantized already, or not finite.
    """
    if linear.fixed.quantized is not None:
        raise ModelError(
            f"{linear.name} is quantized already, to {linear.fixed.quantized.format.name}.",
            where=where,
            fix="Weights are quantized once: leave out one of the two steps.",
        )
    weight = linear.weight.float()
    if not bool(torch.isfinite(weight).all()):
        raise ModelError(
            f"The weights of {linear.name} are not finite.", where=where, fix="Check the model before compressing it."
        )
    return weight.clone(), linear.fixed.mask


def settle(linear: Linear, quantized: Quantized, notes: list[str]) -> dict[str, Any]:
    """Write a decision down, and describe it."""
    before = linear.weight.float().clone()
    linear.quantize(quantized)
    linear.fixed.notes += notes
    lost = (linear.weight.float() - before).square().sum() / before.square().sum().clamp_min(1e-38)
    return {
        "format": quantized.format.name,
        "groups": quantized.scale.shape[1],
        "bits_per_weight": quantized.bits_per_weight,
        "weight_error": float(lost),
        "notes": notes,
    }
