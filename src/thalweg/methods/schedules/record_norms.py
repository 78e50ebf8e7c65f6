"""Record norms: the l1 norm of the raw gradient at every step, for a schedule to be refined from.

    grad_l1 = sum_i |g_i|        all parameters, the whole batch, before clipping, noise and weight decay

The trainer writes the l2 norm by itself (`grad_norm`, before clipping, too). Refinement wants the l1 norm where an
optimizer of Adam's kind is used and the l2 norm for plain gradient descent.

Source: "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement" (2023, arXiv:2310.07831).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thalweg.numerics.curvature import norm


class RecordNorms:
    """A callback that writes the metric "grad_l1" at every step."""

    def __init__(self) -> None:
        self._norm: Tensor | None = None

    def raw_gradients(self, trainer: Any, batch: dict[str, Tensor]) -> None:
        """Take the norm, on the device: the host does not wait for it here."""
        gradients = [parameter.grad for parameter in trainer.parameters if parameter.grad is not None]
        self._norm = norm(gradients, order=1.0)

    def step(self, trainer: Any) -> None:
        """Write it, once the step is done."""
        if self._norm is not None:
            trainer.metrics["grad_l1"] = float(self._norm)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every step is measured anew."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""
