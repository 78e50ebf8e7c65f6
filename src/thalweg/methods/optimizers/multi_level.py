"""Multi-level training: learn with a small model what a large one needs, in a V-cycle.

    down    train M_1 for a short while; M_2 = coalesce(M_1); ... down to M_K
    up      train M_K; M_(k-1) = (1 - alpha) M_(k-1) + alpha decoalesce(M_k); train M_(k-1); ... up to M_1

Half the width and depth is an eighth of the parameters and of the FLOPs a token, so most of the way is cheap. The model
from above alone (alpha 1) would have channels in pairs with equal gradients for ever; mixing it with the large model
from before tells them apart. How models are mapped is in `models.coalescing`.

Every training is with a new optimizer: its state is not mapped. In the authors' runs of GPT-2 the first training ends
with the warm-up (5% of the steps), the small model is trained for half as many steps as a run without levels has, with
four times the rate, and the last training takes as many again.

Source: "A Multi-Level Framework for Accelerating Training Transformer Models" (2024, arXiv:2404.07999); alpha 0.5 is
that of their scripts for language models (0.25 that of their code where none is given).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from thalweg.errors import ModelError
from thalweg.models.coalescing import Coalescing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DOWN, UP = "down", "up"


@torch.no_grad()
def interpolate(model: nn.Module, other: Mapping[str, Tensor], alpha: float = 0.5) -> None:
    """Move a model's parameters to (1 - alpha) of their own plus alpha of the other's, in place."""
    for name, parameter in model.named_parameters():
        parameter.lerp_(other[name].to(parameter), alpha)


def v_cycle(
    model: PreTrainedModel,
    train: Callable[[PreTrainedModel, int, str], None],
    *,
    levels: int = 2,
    alpha: float = 0.5,
    width: bool = True,
    depth: bool = True,
) -> None:
    """Train a model in place by a V-cycle.

    Args:
        model: Llama-shaped, freshly initialised.
        train: `train(model, level, leg)` trains in place with an optimizer of its own; level 0 is `model`, higher ones
            are smaller; leg is "down" or "up". It is called for levels 0, 1, ... on the way down and for the lowest,
            ..., 1, 0 on the way up.
        levels: models in all; 1 is training as usual, with its two legs.
        alpha: share of the smaller model.
        width: halve the width from level to level. depth: halve the number of layers.

    Raises:
        ModelError: fewer than one level, alpha outside 0 to 1, or a model that cannot be coalesced.
    """
    if levels < 1 or not 0.0 <= alpha <= 1.0:
        raise ModelError(
            f"{levels} levels with alpha = {alpha} are no V-cycle",
            where="multi_level",
            fix="Give at least one level and an alpha from 0 to 1.",
        )
    models, ways = [model], []
    for level in range(levels - 1):
        train(models[-1], level, DOWN)
        ways.append(Coalescing.of(models[-1].config, width, depth))
        models.append(ways[-1].small(models[-1]))
    for level in range(levels - 1, 0, -1):
        train(models[level], level, UP)
        interpolate(models[level - 1], ways[level - 1].decoalesce(dict(models[level].named_parameters())), alpha)
    train(model, 0, UP)
