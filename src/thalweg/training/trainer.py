"""The loop. One step of training is what DESIGN calls the box, and this file reads like it:

    batch   = data.batch(step)
    losses  = objective(model, batch)                 # per token
    losses  = losses * reweighting.weights(losses)    # mean 1 over the global batch
    loss    = mean(losses) + penalties
    backward; clip; gradient callbacks
    lr      = peak * schedule.factor(clock)
    optimizer.step
    clock.advance; callbacks

All else (metrics, evaluation, checkpoints, the live line, noise, monitors) is a callback: an object with any of the
methods in `HOOKS`. Parts in slots (optimizer, schedule, objective, reweighting) that have such a method are called
too; an optimizer's `step` is torch's own, so its hook of that kind is called `after_step`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thalweg.training import process
from thalweg.training.clock import Clock
from thalweg.training.parallel import Parallel
from thalweg.training.snapshot import restore_snapshot, take_snapshot
from thalweg.training.token_losses import TokenLosses

if TYPE_CHECKING:
    from thalweg.recipe import Recipe
    from thalweg.runs import Run

Batch = dict[str, Tensor]

# Hooks in the order in which a run meets them; `batch`, `losses` and `loss` may return a replacement.
HOOKS = (
    "setup", "batch", "losses", "loss", "accumulated", "raw_gradients", "gradients", "step", "skipped", "evaluation",
    "finish",
)  # fmt: skip


class Trainer:
    """Trains one model under one clock.

    Args:
        token_losses: the model and the objective as one module, before any wrapping; `module` is the same, wrapped
            for this rank (`Parallel.wrap`).
        data: `batch(step)` gives this rank's slice of the global batch: `input_ids` and `targets`, both [B, T].
        optimizer, schedule, objective, reweighting: the parts in the slots (contracts in docs/architecture.md).
        held_out: `batch(0)` gives the fixed held-out batch that monitors measure on.
        callbacks: called in order after the parts in the slots.
        clock: what may be and has been spent.
        plan: the planner's `chosen` table; `peak_lr`, `micro_batch` and `precision` are read here.
        flops_per_token: training FLOPs a token, for the clock.
    """

    def __init__(
        self,
        *,
        token_losses: TokenLosses,
        module: nn.Module,
        data: Any,
        optimizer: torch.optim.Optimizer,
        schedule: Any,
        clock: Clock,
        plan: dict[str, Any],
        recipe: Recipe,
        run: Run,
        parallel: Parallel,
        flops_per_token: float,
        reweighting: Any = None,
        held_out: Any = None,
        callbacks: Iterable[Any] = (),
    ) -> None:
        self.token_losses, self.module, self.model = token_losses, module, token_losses.model
        self.data, self.optimizer, self.schedule = data, optimizer, schedule
        self.reweighting, self.clock = reweighting, clock
        self.plan, self.recipe, self.run, self.parallel = plan, recipe, run, parallel
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.callbacks = list(callbacks)
        self._held_out = held_out
        self.seed, self.rank, self.world_size = recipe.seed, parallel.rank, parallel.world_size
        self.metrics: dict[str, Any] = {}
        self.finite = True
        self.lr_scale = 1.0
        self.stop_requested: int | None = None
        self.step_tokens = plan["batch_size"] * plan["context"]
        # A second look is a second forward and backward pass over the same tokens.
        self.step_flops = self.step_tokens * flops_per_token * (1 + getattr(optimizer, "second_look", False))

    # -- the box --------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Spend the budget. Ends early, with `stop_requested` set, when a signal asked for it."""
        self.setup()
        while not self.clock.last and self.stop_requested is None:
            self.train_step()
        self.call("finish")

    def train_step(self) -> None:
        """One optimizer step: the box."""
        began = time.monotonic()
        self.clock.begin_step(self.step_tokens, self.step_flops)
        self.metrics, self.finite = {}, True
        batch = self.call("batch", self.data.batch(self.clock.step))
        loss = self.backward(batch)
        self.call("raw_gradients", batch)
        norm = self.clip()
        lr = self.plan["peak_lr"] * self.lr_scale * self.schedule.factor(self.clock)
        self.metrics |= self.on_host(loss, norm) | {"lr": lr}
        if self.finite:
            self.call("gradients")
            self.set_lr(lr)
            self.optimizer.step(*self.second_look(batch))  # type: ignore[arg-type]
        self.optimizer.zero_grad(set_to_none=True)
        self.clock.advance(self.step_tokens, self.step_flops, time.monotonic() - began)
        self.call("step" if self.finite else "skipped")

    def backward(self, batch: Batch) -> Tensor:
        """Accumulate the gradient of the mean loss over the global batch; returns that loss (detached, a scalar)."""
        micro = self.plan["micro_batch"]
        parts = [
            {key: value[i : i + micro] for key, value in batch.items()} for i in range(0, len(batch["targets"]), micro)
        ]
        ahead = self.weights_ahead(parts) if self.reweighting is not None and len(parts) > 1 else None
        valid = [(part["targets"] != -100).sum() for part in parts]
        per_rank = self.parallel.mean(torch.stack(valid).sum().float()).clamp(min=1)
        total = torch.zeros((), device=self.parallel.device)
        # Who looks between micro-batches wants the gradient of all ranks there.
        watched = any(hasattr(part, "accumulated") for part in self.parts())
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with self.parallel.accumulate(self.module, last=last or watched):
                losses = self.call("losses", self.losses(part))
                if self.reweighting is not None:
                    losses = losses * (ahead[index] if ahead else self.weights(losses.detach()))
                mean = self.call("loss", losses.sum() / valid[index].clamp(min=1))
                (mean * (valid[index] / per_rank)).backward()
            total += mean.detach() * (valid[index] / per_rank)
            if watched:
                self.call("accumulated", last)
        return self.parallel.mean(total)

    def losses(self, batch: Batch) -> Tensor:
        """Losses a token, [B, T], with the graph to differentiate them."""
        with process.autocast(self.parallel.device, self.plan["precision"]):
            return self.module(batch["input_ids"], batch["targets"])

    def weights(self, losses: Tensor) -> Tensor:
        """This rank's weights, [B, T], from the losses of the global batch."""
        weights = self.reweighting.weights(self.parallel.gather(losses))
        return weights[self.rank * len(losses) : (self.rank + 1) * len(losses)]

    def weights_ahead(self, parts: list[Batch]) -> tuple[Tensor, ...]:
        """Weights for every micro-batch, from one pass without gradients over the whole batch."""
        with torch.no_grad():
            losses = torch.cat([self.losses(part) for part in parts])
        return self.weights(losses).split([len(part["targets"]) for part in parts])

    def clip(self) -> Tensor:
        """Clip the gradient to the recipe's norm; returns the norm before."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.training.clip, foreach=True)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def on_host(self, loss: Tensor, norm: Tensor) -> dict[str, float]:
        """Loss and norm in one transfer, for which a look waits once; the step is `finite` while all of them are."""
        loss_value, norm_value = torch.stack([loss.float(), norm.float()]).tolist()
        self.finite = self.finite and all(abs(value) < float("inf") for value in (loss_value, norm_value))
        return {"loss": loss_value, "grad_norm": norm_value}

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def second_look(self, batch: Batch) -> tuple[Callable[[], Tensor], ...]:
        """The closure, for optimizers that say `second_look = True`: they want the gradient elsewhere, too."""
        if not getattr(self.optimizer, "second_look", False):
            return ()

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                loss = self.backward(batch)
            self.on_host(loss, self.clip())
            if self.finite:
                self.call("gradients")
            else:  # what has no gradient does not move
                self.optimizer.zero_grad(set_to_none=True)
            return loss

        return (closure,)

    # -- the parts ------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Let every part prepare."""
        self.call("setup")
        reshaped = any(hasattr(part, "losses") for part in self.parts())
        self.token_losses.weighted = self.reweighting is not None or reshaped

    @property
    def objective(self) -> nn.Module:
        """What loss is; callbacks may put another around it in `setup`."""
        return self.token_losses.objective

    @objective.setter
    def objective(self, objective: nn.Module) -> None:
        self.token_losses.objective = objective

    def held_out_batch(self) -> Batch:
        """A fixed small held-out batch on the device, the same at every call."""
        return {key: value.to(self.parallel.device) for key, value in self._held_out.batch(0).items()}

    def snapshot(self) -> dict[str, Any]:
        """Copies of weights, optimizer, random state and the recipe's parts, to `restore`; not of the clock."""
        return take_snapshot(self)

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to a snapshot; what was spent since stays spent. Between steps only."""
        restore_snapshot(self, snapshot)

    def parts(self) -> list[Any]:
        """Everything that may have hooks or state, in the order of the calls."""
        slots = [self.optimizer, self.schedule, self.objective, self.reweighting]
        return [part for part in [*slots, *self.callbacks] if part is not None]

    def call(self, hook: str, value: Any = None) -> Any:
        """Call a hook on every part that has it; a value passes through those that return a replacement."""
        passing = value is not None
        for part in self.parts():
            name = "after_step" if part is self.optimizer and hook == "step" else hook
            method = getattr(part, name, None)
            if method is None:
                continue
            result = method(self, value) if passing else method(self)
            if passing and result is not None:
                value = result
        return value
