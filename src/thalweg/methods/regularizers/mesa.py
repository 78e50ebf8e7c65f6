"""MESA: hold the outputs of a model near those of a running average of its own weights.

    v <- beta v + (1 - beta) w                                             after every step
    L_i + lambda tau^2 KL( softmax(f_v(x_i) / tau) || softmax(f_w(x_i) / tau) )

The average lags behind the run, so the penalty acts where outputs change fast along it; see `trajectory` for why that
is a penalty on sharpness. Costs one forward pass of the average without gradients, the logits' share of one more, and
one number of state a parameter. The average is there for other uses, too: `MESA.average`.

Source: "Sharpness-Aware Training for Free" (2022, arXiv:2205.14083). Where we deviate: the start is a share of the
budget instead of epoch 5 of 90 or more, and beta is 0.99 instead of the 0.9998 of their code, which forgets over 5000
steps: runs of ours may be as short as hundreds. Beta should rise with the length of a run. Their script reports the
accuracy of the average, ours the loss of the weights.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from thalweg.errors import RecipeError
from thalweg.methods.regularizers.trajectory import Observer, Penalty, Trajectory, trajectory_loss


class MESA(Trajectory):
    """A callback that adds the penalty to whatever the objective is; writes the metric "mesa".

    Args:
        coefficient: lambda.
        temperature: tau.
        beta: memory of the average, a step.
        start: share of the budget that is trained without the penalty; the average is kept from the first step.

    Attributes:
        average: the model with the averaged weights, in evaluation mode; None before `setup`.

    Raises:
        RecipeError: an option that the card does not allow; in `setup`, a model that is sharded over ranks.
    """

    card = "mesa"

    def __init__(
        self, coefficient: float = 0.8, temperature: float = 5.0, beta: float = 0.99, start: float = 0.05
    ) -> None:
        super().__init__(coefficient=coefficient, temperature=temperature, beta=beta, start=start)
        self.average: Any = None
        self._loaded: dict[str, Tensor] = {}

    def setup(self, trainer: Any) -> None:
        """Begin the average at the weights, or where a checkpoint left it."""
        if any(isinstance(parameter, DTensor) for parameter in trainer.parameters):
            raise RecipeError(
                "mesa keeps a second whole model, which no rank has when it is sharded",
                where="training.shard",
                fix="Leave out --shard or mesa.",
            )
        # Copied before the objective is wrapped, which hangs a hook on the model.
        self.average = copy.deepcopy(trainer.model).eval().requires_grad_(False)
        self._restore()
        super().setup(trainer)

    def look_back(self, input_ids: Tensor, fused: bool) -> tuple[Penalty | None, Observer | None]:
        """The penalty against the average's outputs for the same input."""
        if not self.active:
            return None, None
        with torch.no_grad():
            past = outputs(self.average, input_ids, fused)

        def penalty(logits: Tensor, tokens: Tensor) -> Tensor:
            with torch.no_grad():
                target = past(tokens)
            return self.options.coefficient * trajectory_loss(logits, target, self.options.temperature)

        return penalty, None

    @torch.no_grad()
    def step(self, trainer: Any) -> None:
        """Move the average towards the weights."""
        super().step(trainer)
        own = list(self.average.parameters())
        torch._foreach_lerp_(own, list(trainer.model.parameters()), 1.0 - self.options.beta)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights."""
        return {} if self.average is None else {"average": dict(self.average.named_parameters())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, before `setup` or after it."""
        self._loaded = {name: weight.clone() for name, weight in state.get("average", {}).items()}
        self._restore()

    @torch.no_grad()
    def _restore(self) -> None:
        if self.average is not None:
            for name, weight in self._loaded.items():
                self.average.get_parameter(name).copy_(weight)
            self._loaded = {}


def outputs(model: Any, input_ids: Tensor, fused: bool) -> Any:
    """The logits of a pass, to be asked for by tokens [n] -> [n, V]; fused: made from hidden states when asked."""
    if not fused:
        logits = model(input_ids=input_ids, use_cache=False).logits.flatten(0, -2)
        return lambda tokens: logits[tokens]
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, -2)
    head: nn.Module = model.get_output_embeddings()
    return lambda tokens: head(hidden[tokens])
