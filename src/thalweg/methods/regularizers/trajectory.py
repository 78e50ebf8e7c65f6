"""What `mesa` and `saf` share: a loss on how far outputs have moved along the run's own trajectory.

    tau^2 KL( softmax(past / tau) || softmax(logits / tau) )        a token

To first order the sharpness around w is the length of the gradient, and a long gradient is what makes the loss of an
example fall fast from one visit to the next. Holding outputs near those of an earlier point of the run therefore
penalises sharp regions without a second backward pass. The gradient for the logits is
tau (softmax(logits / tau) - softmax(past / tau)).

Source: "Sharpness-Aware Training for Free" (2022, arXiv:2205.14083); tau^2 stands in its code only.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg import catalog
from thalweg.errors import RecipeError
from thalweg.models.chunked import chunked_losses

IGNORED = -100
# Both are given logits [n, V] and which tokens of the pass these are [n], int64; a penalty gives losses [n].
Penalty = Callable[[Tensor, Tensor], Tensor]
Observer = Callable[[Tensor, Tensor], None]


def trajectory_loss(logits: Tensor, past: Tensor, temperature: float = 5.0) -> Tensor:
    """The loss above for every token: logits and past logits [..., V] -> [...]; no gradient flows into the past."""
    now, before = (scaled(each, temperature).log_softmax(-1) for each in (logits, past.detach()))
    return temperature**2 * functional.kl_div(now, before, reduction="none", log_target=True).sum(-1)


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature, in float32 or wider."""
    return (logits if logits.dtype == torch.float64 else logits.float()) / temperature


class Past(Protocol):
    """A method that knows an earlier point of the run; asked once for every pass over a micro-batch."""

    def look_back(self, input_ids: Tensor, fused: bool) -> tuple[Penalty | None, Observer | None]:
        """What to add to the losses of this pass, and who wants to see its logits; None for nothing and nobody.

        fused: the model's logits are its last hidden states times its head.
        """


class TrajectoryObjective(nn.Module):
    """An objective plus a method's penalty, with the logits of a bounded number of tokens at a time.

    Where the method has no penalty yet the losses are the objective's, bit for bit. Objectives are not told which
    tokens they look at; the input is therefore read off the model by a hook, and every call has to be for a whole
    pass of the model: nothing that cuts passes up may stand around this.

    Args:
        objective: `forward(logits, targets) -> losses`, perhaps with `from_hidden`.
        model: whose input is read.
        past: the method.
    """

    def __init__(self, objective: nn.Module, model: nn.Module, past: Past) -> None:
        super().__init__()
        self.objective, self.past = objective, past
        self._input_ids: Tensor | None = None
        self._penalties: list[Tensor] = []
        getattr(model, "base_model", model).register_forward_pre_hook(self._read, with_kwargs=True)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Losses of targets' shape from the logits of a pass, [..., V]."""
        tokens, penalty, observer = self._begin(targets, fused=False)
        losses, flat = self.objective(logits, targets), logits.flatten(0, -2)
        if observer is not None:
            observer(flat.detach(), tokens)
        if penalty is None:
            return losses
        return losses + self._kept(penalty(flat, tokens), targets.flatten()).view(targets.shape)

    def from_hidden(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 1024, weighted: bool = False
    ) -> Tensor:
        """The same from the hidden states of a pass, [..., d], and a head weight [V, d]."""
        tokens, penalty, observer = self._begin(targets, fused=True)
        flat, wanted = hidden.flatten(0, -2), targets.flatten()

        def head(some: Tensor) -> Tensor:
            return functional.linear(some, weight)

        def both(logits: Tensor, which: Tensor) -> Tensor:
            # Checkpointing runs this again inside the backward pass: those tokens have been seen already.
            if observer is not None and torch._C._current_graph_task_id() == -1:
                observer(logits.detach(), which)
            losses = self.objective(logits, wanted[which])
            return losses if penalty is None else losses + self._kept(penalty(logits, which), wanted[which])

        if penalty is not None:
            return chunked_losses(flat, head, both, tokens, chunk).view(targets.shape)
        if observer is not None:
            with torch.no_grad():
                for some, which in zip(flat.split(chunk), tokens.split(chunk), strict=True):
                    observer(head(some), which)
        own: Callable[..., Tensor] | None = getattr(self.objective, "from_hidden", None)
        if own is not None:
            return own(hidden, weight, targets, chunk, weighted)
        return chunked_losses(flat, head, self.objective, wanted, chunk).view(targets.shape)

    def take_mean(self) -> float | None:
        """Mean penalty a token since the last call; None if there was none."""
        penalties, self._penalties = self._penalties, []
        if not penalties:
            return None
        total, count = torch.stack(penalties).sum(0).tolist()
        return total / max(count, 1.0)

    def _read(self, module: nn.Module, arguments: tuple[object, ...], named: dict[str, object]) -> None:
        given = named.get("input_ids", arguments[0] if arguments else None)
        self._input_ids = given if isinstance(given, Tensor) else None

    def _begin(self, targets: Tensor, fused: bool) -> tuple[Tensor, Penalty | None, Observer | None]:
        if self._input_ids is None or self._input_ids.numel() != targets.numel():
            raise RecipeError(
                f"{type(self.past).__name__} has to see the logits of whole passes, and something cuts them up",
                where="objective",
                fix="Use it without another penalty on logits (z_loss_penalty, or mesa and saf together).",
            )
        penalty, observer = self.past.look_back(self._input_ids, fused)
        return torch.arange(targets.numel(), device=targets.device), penalty, observer

    def _kept(self, penalty: Tensor, targets: Tensor) -> Tensor:
        """The penalty where the target counts, noted for the mean."""
        counts = targets != IGNORED
        penalty = penalty.where(counts, 0.0)
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            self._penalties.append(torch.stack([penalty.detach().sum().float(), counts.sum().float()]))
        return penalty


class Trajectory:
    """What the callbacks of both methods do alike: wrap the objective, mind when to begin, write the metric.

    Args:
        options: the method's, checked by its card; `coefficient` (0 leaves training as it is) and `start`, the share
            of the budget that is trained without, are used here.

    Raises:
        RecipeError: an option that the card does not allow.
    """

    card: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        self.options: Any = SimpleNamespace(**catalog.lookup(self.card).check(options, where=self.card))
        self.active = False
        self._wrapped: TrajectoryObjective | None = None

    def look_back(self, input_ids: Tensor, fused: bool) -> tuple[Penalty | None, Observer | None]:
        """See `Past`."""
        raise NotImplementedError

    def setup(self, trainer: Any) -> None:
        """Wrap the trainer's objective."""
        self._wrapped = TrajectoryObjective(trainer.objective, trainer.model, self)
        trainer.objective = self._wrapped

    def batch(self, trainer: Any, batch: dict[str, Tensor]) -> None:
        """Has the beginning of the budget passed?"""
        self.active = self.options.coefficient > 0.0 and trainer.clock.progress > self.options.start

    def step(self, trainer: Any) -> None:
        """Write the mean penalty of this step's tokens."""
        mean = self._wrapped.take_mean() if self._wrapped is not None else None
        if mean is not None:
            trainer.metrics[self.card] = mean

    def skipped(self, trainer: Any) -> None:
        """A step that was thrown away leaves nothing behind for the next one's mean."""
        if self._wrapped is not None:
            self._wrapped.take_mean()
