"""Dynamic loss-based reweighting: sequences that the model finds easy count less.

For the n sequences of a step, with l_i the mean loss of sequence i's tokens:

    h_i = (l_i - (l_max + l_min) / 2) / ((l_max - l_min) / 2)         in [-1, 1]
    s_i = f(h_i)                                                      the strategy
    w_i = exp(s_i / r) / sum_j exp(s_j / r)                           a constant for the gradient
    loss = sum_i w_i l_i

Strategies f: lin_upper min(h + 1, 1) (easy ones down, all others alike); quadratic 1 - h^2 (the middle up); extremes
|h| (both ends up); upper (h + 1) / 2 (the hardest up); uniform (all alike). r is a temperature: no weight is more than
exp(1 / r) times another. Batches below 16 sequences make the range meaningless.

Source: "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining" (2025, arXiv:2502.06733).
Weights are returned as n w_i, so that they have mean 1 and plug into a mean over tokens. As their code does, the
burn-in trains with plain losses first; ours is a share of the budget, theirs 1000 of 20000 steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import RecipeError

STRATEGIES = ("lin_upper", "quadratic", "extremes", "upper", "uniform")
SMALLEST_RANGE = 1e-6


def sequence_weights(losses: Tensor, strategy: str = "lin_upper", r: float = 1.0) -> Tensor:
    """Weights w [n] with sum 1 from the mean losses [n] of the sequences of one step."""
    low, high = losses.detach().aminmax()
    half_range = (high - low).clamp_min(SMALLEST_RANGE) / 2
    place = (losses.detach() - (low + high) / 2) / half_range
    scores = {
        "lin_upper": lambda h: (h + 1.0).clamp_max(1.0),
        "quadratic": lambda h: 1.0 - h.square(),
        "extremes": lambda h: h.abs(),
        "upper": lambda h: (h + 1.0) / 2,
        "uniform": torch.zeros_like,
    }[strategy](place)
    return torch.softmax(scores / r, dim=0)


class DynamicLoss:
    """Weights for the losses of a step from the losses themselves.

    Args:
        strategy: lin_upper, quadratic, extremes, upper or uniform.
        r: temperature; large is uniform.
        burn_in: share of the budget trained with plain losses first.

    Raises:
        RecipeError: an option out of range.
    """

    def __init__(self, strategy: str = "lin_upper", r: float = 1.0, burn_in: float = 0.05) -> None:
        where = "reweighting dynamic_loss"
        if strategy not in STRATEGIES:
            known = ", ".join(STRATEGIES)
            raise RecipeError(f"strategy = {strategy!r} is not known", where=where, fix=f"Choose from {known}.")
        if not (math.isfinite(r) and r > 0.0):
            raise RecipeError(f"r = {r} is not above 0", where=where, fix="Try 1.0; larger is closer to uniform.")
        if not 0.0 <= burn_in <= 1.0:
            raise RecipeError(f"burn_in = {burn_in} is not in [0, 1]", where=where, fix="It is a share of the budget.")
        self.strategy, self.r, self.burn_in = strategy, r, burn_in
        self._progress = 0.0

    @torch.no_grad()
    def weights(self, losses: Tensor) -> Tensor:
        """Weights [B, T] of mean 1 for per-token losses [B, T], equal within a sequence.

        B is the global batch: a loop with micro-batches or ranks gathers the losses first (our trainer does).
        A token whose loss is exactly 0 is taken for an ignored one and left out of its sequence's mean.
        """
        if self._progress < self.burn_in:
            return torch.ones_like(losses)
        exact = losses.detach().float()
        means = exact.sum(1) / (exact != 0).sum(1).clamp_min(1)
        weights = sequence_weights(means, self.strategy, self.r) * len(means)
        return weights.unsqueeze(1).expand(losses.shape).to(losses.dtype)

    def step(self, trainer: Any) -> None:
        """Take note of how far the run is."""
        self._progress = float(trainer.clock.progress)

    def state_dict(self) -> dict[str, Any]:
        """How far the run was."""
        return {"progress": self._progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._progress = float(state["progress"])
