"""Essential sparsity: how many of the smallest weights a trained model can lose at once before its loss rises.

    prune the s smallest |w| of all block matrices, E(s) = nats a token of the calibration text, no training between
    knee = the largest s of the grid with E(s') <= E(0) + tolerance for all s' <= s

The curve is flat up to the knee and then rises fast; up to it a free mask is as good as an expensive one. Masks are
nested, since each is the floor(s n) smallest of one order: by magnitude, then by place. The curve keeps a copy of the
block matrices while it is measured.

Source: "The Emergence of Essential Sparsity in Large Pre-trained Models: The Weights that Matter" (2023,
arXiv:2306.03805).
Where we deviate: the authors allow 1% of a task's metric after fine-tuning, on a grid of 10% steps; this is nats of a
language model without fine-tuning, as they do with Vicuna, and steps of 5%. Weights that were pruned before are zeros
like others, so they come first and are in s. Patterns N:M are another method's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from thalweg.catalog import lookup
from thalweg.errors import ModelError
from thalweg.methods.pruning.masks import Target, lowest_of_all, sparsity_of, without_lowest
from thalweg.models.compression import block_linears
from thalweg.models.linears import Linear
from thalweg.models.text_loss import text_loss

SCOPES = ("global", "layer")
BEYOND = 1.0  # nats above the dense model: past any knee, and further points would only cost time


class EssentialSparsity:
    """Usable by itself: `EssentialSparsity(tolerance=0.02).compress(model, windows)`, or `curve` and `knee` of this
    module to look without pruning.

    Args:
        tolerance: nats a token that may be lost.
        step: of the grid of sparsities.
        scope: "global" for one order of all weights, "layer" for the same sparsity in every matrix.

    Raises:
        RecipeError: an option out of range.
    """

    def __init__(self, tolerance: float = 0.02, step: float = 0.05, scope: str = "global") -> None:
        lookup("essential_sparsity").check(
            {"tolerance": tolerance, "step": step, "scope": scope}, where="essential_sparsity"
        )
        self.tolerance, self.step, self.scope = tolerance, step, scope

    def curve(self, model: Any, calibration: Tensor | None) -> dict[str, Any]:
        """The curve up to a nat above the dense model, and its knee; the model is left as it was."""
        sparsities, losses = curve(model, calibration, self.step, self.scope, BEYOND)
        found = knee(sparsities, losses, self.tolerance)
        return {"sparsities": sparsities, "losses": losses, "knee": found, "tolerance": self.tolerance}

    def compress(self, model: Any, calibration: Tensor | None = None) -> dict[str, Any]:
        """Prune a causal language model in place, up to its knee.

        Args:
            model: any transformers causal language model.
            calibration: text, int64 [windows, T].

        Returns:
            sparsities and losses of the curve (the first is the model as it was given), knee, tolerance, scope, and
            layers: the share of zeros of each linear afterwards.

        Raises:
            ModelError: no calibration, or weights that are not finite.
        """
        found = self.curve(model, calibration)
        linears = block_linears(model)
        if found["knee"] > 0:
            masks = kept_at([linear.weight for linear in linears.values()], found["knee"], self.scope)
            for linear, keep in zip(linears.values(), masks, strict=True):
                linear.prune(keep)
        layers = {name: sparsity_of(linear) for name, linear in linears.items()}
        return {**found, "scope": self.scope, "layers": layers}


def knee(sparsities: Sequence[float], losses: Sequence[float], tolerance: float) -> float:
    """The largest sparsity up to which all losses are within tolerance of the first one.

    Args:
        sparsities: rising; the first is that of the dense model.
        losses: lower is better; a metric that should be high is given with its sign changed.
        tolerance: in the unit of losses.

    Raises:
        ModelError: no points, not as many losses, or sparsities that do not rise.
    """
    rising = all(one < other for one, other in itertools.pairwise(sparsities))
    if not sparsities or len(sparsities) != len(losses) or not rising:
        raise ModelError(
            f"{len(sparsities)} sparsities and {len(losses)} losses are no curve.",
            where="knee",
            fix="Give as many of both, sparsities rising.",
        )
    found = sparsities[0]
    for sparsity, loss in zip(sparsities, losses, strict=True):
        # Written so that NaN is beyond the knee.
        if not loss <= losses[0] + tolerance:
            break
        found = sparsity
    return found


def curve(
    model: Any, calibration: Tensor | None, step: float = 0.05, scope: str = "global", beyond: float = math.inf
) -> tuple[list[float], list[float]]:
    """Losses of a model at growing sparsities; it is left as it was.

    Args:
        model: any transformers causal language model.
        calibration: text, int64 [windows, T].
        step: of the grid 0, step, 2 step, ... below 1.
        scope: global or layer.
        beyond: the curve ends with the first loss so many nats above the first.

    Returns:
        (sparsities, nats a token at each).

    Raises:
        ModelError: no calibration, or weights or a first loss that are not finite.
    """
    linears = _checked(model, calibration)
    before = [linear.weight.clone() for linear in linears]
    sparsities: list[float] = []
    losses: list[float] = []
    try:
        for sparsity in _grid(step):
            for linear, weight, keep in zip(linears, before, kept_at(before, sparsity, scope), strict=True):
                linear.weight.copy_(weight.masked_fill(~keep, 0.0))
            sparsities.append(sparsity)
            losses.append(text_loss(model, calibration))  # type: ignore[arg-type]
            if not math.isfinite(losses[0]):
                raise ModelError(
                    "The loss on the calibration text is not finite.", where="curve", fix="Check the model."
                )
            if not losses[-1] <= losses[0] + beyond:
                break
    finally:
        for linear, weight in zip(linears, before, strict=True):
            linear.weight.copy_(weight)
    return sparsities, losses


def _checked(model: Any, calibration: Tensor | None) -> list[Linear]:
    if calibration is None:
        raise ModelError("The curve needs text.", where="essential_sparsity", fix="Give windows [n, T] of tokens.")
    linears = list(block_linears(model).values())
    for linear in linears:
        linear.check_finite()
    return linears


def _grid(step: float) -> list[float]:
    return [round(index * step, 10) for index in range(math.ceil(1 / step)) if round(index * step, 10) < 1]


def kept_at(weights: Sequence[Tensor], sparsity: float, scope: str = "global") -> list[Tensor]:
    """Masks of the weights' shapes, False for the share `sparsity` of smallest magnitude, of all or of each."""
    target = Target(sparsity)
    if scope == "global":
        count = target.pruned(sum(weight.numel() for weight in weights))
        return lowest_of_all(lambda: (weight.float().abs() for weight in weights), count)
    return [
        without_lowest(weight.float().abs().flatten(), target.pruned(weight.numel())).view(weight.shape)
        for weight in weights
    ]
