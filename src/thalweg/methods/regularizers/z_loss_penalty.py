"""z-loss: keep the normaliser of the output softmax near 1.

    loss_i <- loss_i + c (logsumexp(logits_i))^2             c = 1e-4, a token at a time

Cross-entropy does not change when all logits of a token move together, so nothing stops them from drifting until the
softmax loses its precision. The penalty does: its gradient is 2 c logZ softmax(logits).

Source: "PaLM: Scaling Language Modeling with Pathways" (2022, arXiv:2204.02311), studied in "Small-scale proxies for
large-scale Transformer training instabilities" (2023, arXiv:2309.14322). The callback wraps the trainer's objective.
Our cross-entropy adds the penalty inside its fused form; other objectives are given their logits in chunks.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from thalweg.errors import RecipeError

IGNORED = -100


def z_loss(logits: Tensor, coefficient: float = 1e-4) -> Tensor:
    """coefficient * logsumexp(logits)^2 for every token: logits [..., V] -> [...], in float32 or wider."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return coefficient * exact.logsumexp(-1).square()


class ZLossObjective(nn.Module):
    """An objective with the penalty added to the loss of every token that counts.

    Args:
        objective: forward(logits [..., V], targets [...]) -> losses of targets' shape.
        coefficient: weight of the penalty.
    """

    def __init__(self, objective: nn.Module, coefficient: float = 1e-4) -> None:
        super().__init__()
        self.objective = objective
        self.coefficient = coefficient
        self._total: Tensor | None = None
        self._count: Tensor | None = None
        # Trainers look for `from_hidden`: it is there when the objective within can add the penalty as it goes.
        if hasattr(objective, "from_hidden_with_normaliser"):
            self.from_hidden = self._from_hidden

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Losses of targets' shape; 0 where the target is -100."""
        penalty = z_loss(logits, self.coefficient).where(targets != IGNORED, 0.0)
        self._record(penalty.detach(), targets)
        return self.objective(logits, targets) + penalty

    def _from_hidden(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 1024, weighted: bool = False
    ) -> Tensor:
        """The same losses from hidden states [..., d] and a head weight [V, d]."""
        fused = cast(Any, self.objective).from_hidden_with_normaliser
        losses, normaliser = fused(hidden, weight, targets, chunk, weighted, self.coefficient)
        self._record((self.coefficient * normaliser.square()).where(targets != IGNORED, 0.0), targets)
        return losses

    def _record(self, penalty: Tensor, targets: Tensor) -> None:
        # Checkpointing runs `forward` again inside the backward pass: those tokens are counted already. Passes
        # without gradients are evaluations.
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            total, count = penalty.sum(), (targets != IGNORED).sum()
            self._total = total if self._total is None else self._total + total
            self._count = count if self._count is None else self._count + count

    def take_mean(self) -> float | None:
        """Mean penalty a token since the last call; None if nothing was computed."""
        if self._total is None or self._count is None:
            return None
        mean = float(self._total / self._count.clamp_min(1))
        self._total = self._count = None
        return mean


class ZLossPenalty:
    """A callback that adds z-loss to whatever the objective is; writes the metric "z_loss".

    Args:
        coefficient: weight of the squared log-normaliser.

    Raises:
        RecipeError: a coefficient below 0 or not finite.
    """

    def __init__(self, coefficient: float = 1e-4) -> None:
        if not (math.isfinite(coefficient) and coefficient >= 0.0):
            raise RecipeError(f"coefficient = {coefficient} is not a number at or above 0", where="z_loss_penalty")
        self.coefficient = coefficient
        self._wrapped: ZLossObjective | None = None

    def setup(self, trainer: Any) -> None:
        """Wrap the trainer's objective."""
        self._wrapped = ZLossObjective(trainer.objective, self.coefficient)
        trainer.objective = self._wrapped

    def step(self, trainer: Any) -> None:
        """Write the mean penalty of this step's tokens."""
        mean = self._wrapped.take_mean() if self._wrapped is not None else None
        if mean is not None:
            trainer.metrics["z_loss"] = mean

    def skipped(self, trainer: Any) -> None:
        """A step that was thrown away leaves nothing behind for the next one's mean."""
        if self._wrapped is not None:
            self._wrapped.take_mean()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the penalty is a function of the logits."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""
