"""AdamW: Adam with weight decay that does not pass through the moments.

    m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
    w = w (1 - lr wd) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

This is `torch.optim.AdamW` in its fused form, with the defaults of language-model training: beta2 0.95, decay 0.1.
Betas are two plain numbers, so that a recipe can spell them: `adamw:beta2=0.99`.
Source: "Decoupled Weight Decay Regularization" (Loshchilov and Hutter, 2017, arXiv:1711.05101).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


class AdamW(torch.optim.AdamW):
    """Torch's fused AdamW with our defaults.

    Args:
        params: parameters or groups; groups of `parameter_groups` carry their own weight decay.
        lr: peak learning rate.
        weight_decay: decoupled, multiplied by the learning rate.
        beta1: memory of the first moment.
        beta2: memory of the second moment.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        *,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        entries = materialised(params)
        fused = can_fuse(entries)
        super().__init__(entries, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=fused)


def materialised(params: ParamsT) -> list[Any]:
    """Parameters, groups or named parameters with every generator among them turned into a list."""
    entries: list[Any] = list(params)
    for position, entry in enumerate(entries):
        if isinstance(entry, dict) and not isinstance(entry["params"], torch.Tensor):
            entries[position] = {**entry, "params": list(entry["params"])}
    return entries


def can_fuse(entries: list[Any]) -> bool:
    """Whether torch's fused kernel takes all of these parameters (as `materialised` gives them)."""
    for entry in entries:
        members = entry["params"] if isinstance(entry, dict) else entry
        for member in members if isinstance(members, list) else [members]:
            tensor = member[1] if isinstance(member, tuple) else member
            if tensor.device.type not in FUSED_DEVICES or not tensor.is_floating_point():
                return False
    return True
