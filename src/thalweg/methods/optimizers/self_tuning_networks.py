"""Self-tuning networks: learn how the weights answer to dropout and weight decay, and tune both while training.

What is wanted is bilevel: h* = argmin F_val(w*(h)) with w*(h) = argmin F_train(h, w). One network learns w*(h) near the
present h as an affine gating of its layers (`best_response`), phi being its weights and those of the response:

    train:     h_b = h + sigma * N(0, I)      for each example b, whose dropout rate is lambda(h_b)
               phi <- optimizer step on F_train(w_phi(h_b))
    validate:  every `every`-th step, on windows kept out of training, without dropout:
               (h, s) <- Adam on F_val(w_phi(h)) - tau H(sigma),   phi stays
               H(sigma) = sum log(sigma sqrt(2 pi e)),   sigma = softplus(s)

h is unconstrained: dropout = 0.9 sigmoid(h), weight decay = softplus(h). A dropout rate is an example's own, a decay is
the batch's. Where tau is 0 sigma stays and a validation step looks at h itself, else at h_b. Weight decay is decoupled,
as in AdamW: after the optimizer's step, phi moves by -lr lambda times the gradient of the mean of ||w_phi(h_b)||^2 / 2
over the examples, which for sigma = 0 is AdamW's decay. It begins at the run's own.

A validation step is a step of the run: steps, tokens and seconds are spent on it. The model is always the response at
the present h, so every checkpoint is an ordinary model and scores like it; the response is this part's state.

In a loop of your own (`groups` once, before the optimizer):

    tuning = SelfTuningNetworks()
    optimizer = torch.optim.AdamW(tuning.groups(model, parameter_groups(model)), lr=0.007)
    for step in range(steps):
        validating = tuning.due(step, progress=step / steps)
        batch = next(validation if validating else training)
        tuning.begin(step, len(batch["input_ids"]), validating)
        model.train(not validating)
        model(**batch).loss.backward()
        tuning.tune() if validating else optimizer.step()
        tuning.end(None if validating else optimizer)
        optimizer.zero_grad()

Source: "Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions" (2019,
arXiv:1903.03088) and its released code. Where we differ: the response is written around the present h; weight decay is
tuned, decoupled (theirs: penalties of activations in the loss); tables and norms do not answer to h; no scalar on W.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thalweg import catalog
from thalweg.errors import ModelError, RecipeError
from thalweg.methods.optimizers.best_response import BestResponse
from thalweg.methods.optimizers.hyperparameters import Hyperparameters, seed_of

Group = dict[str, Any]

# What each is squashed into.
RANGES = {"dropout": (0.0, 0.9), "weight_decay": (0.0, math.inf)}
TUNED = {"both": ("dropout", "weight_decay"), "dropout": ("dropout",), "weight_decay": ("weight_decay",)}
START = 0.05  # of a decay that the run has at 0


class SelfTuningNetworks:
    """Tunes dropout and weight decay of a Llama-shaped model by what a little held-back text says.

    Args:
        tune: both, dropout or weight_decay.
        dropout: rate to begin with, above 0 where it is tuned.
        every: a validation step every so many; 0 tunes nothing, and this is plain dropout.
        rate: Adam's learning rate for h and s.
        perturbation: sigma to begin with.
        entropy: tau, weight of the entropy; 0 leaves sigma as it is.
        response_lr: learning rate of the response, in units of the weights'.
        warmup: share of the budget before the first validation step.
        reserve: share of the training windows kept for validation, at least a batch.

    Raises:
        RecipeError: an option out of range.
    """

    def __init__(
        self,
        tune: str = "both",
        dropout: float = 0.05,
        every: int = 3,
        rate: float = 0.1,
        perturbation: float = 0.5,
        entropy: float = 0.0,
        response_lr: float = 0.1,
        warmup: float = 0.1,
        reserve: float = 0.1,
    ) -> None:
        options = {key: value for key, value in locals().items() if key != "self"}
        catalog.lookup("self_tuning_networks").check(options, where="self_tuning_networks")
        if every == 1:
            raise RecipeError("every = 1 leaves no step to train in", where="self_tuning_networks", fix="Try every=3.")
        ranges = {name: RANGES[name] for name in (TUNED[tune] if every else ())}
        if "dropout" in ranges and not 0.0 < dropout < RANGES["dropout"][1]:
            raise RecipeError(
                f"a dropout rate of {dropout:g} cannot be tuned: it is an end of its range",
                where="self_tuning_networks:dropout",
                fix="Begin between 0 and 0.9, say at 0.05.",
            )
        # A batch has one decay: an example cannot have it for itself.
        self.tuned = Hyperparameters(ranges, ("weight_decay",), rate, perturbation, entropy)
        self.every, self.warmup, self.reserve, self.response_lr = int(every), warmup, reserve, response_lr
        self.values: dict[str, float] = {"dropout": dropout}
        self.validations = 0
        self.response: BestResponse | None = None
        self._validating = False
        self._draws = self._noise = torch.zeros(0, len(ranges))
        self._leaf: Tensor | None = None
        self._decayed: dict[int, float] = {}
        self._reserved: Any = None

    # -- a loop's own -------------------------------------------------------------------------------------------------

    def groups(self, model: Any, groups: list[Group]) -> list[Group]:
        """Lay the response around the model, and give groups with its parameters among them.

        The gated matrices lose the groups' weight decay where this part decays them itself.
        """
        self.response = BestResponse(model, len(self.tuned), seed_of(torch.initial_seed(), 1))
        if not self.tuned:
            return groups
        gated = {id(gate.linear.weight) for gate in self.response.gates}
        scales = [group.get("lr_scale", 1.0) for group in groups if any(id(p) in gated for p in group["params"])]
        if not scales:
            raise ModelError("the groups hold none of the model's linear layers", where="self_tuning_networks")
        if "weight_decay" in self.tuned:
            groups = self._take_over(gated, groups)
        self.tuned.begin_at(self.values)
        shared = {"weight_decay": 0.0, "lr_scale": self.response_lr * scales[0]}
        wide = [gate.parameters[0] for gate in self.response.gates]
        narrow = [parameter for gate in self.response.gates for parameter in gate.parameters[1:]]
        return [*groups, {"params": wide, "kind": "matrix", **shared}, {"params": narrow, "kind": "vector", **shared}]

    def _take_over(self, gated: set[int], groups: list[Group]) -> list[Group]:
        """Divide groups into what this part decays, with no decay of their own, and the rest."""
        decays = {id(p): group.get("weight_decay", 0.0) for group in groups for p in group["params"] if id(p) in gated}
        start = max(decays.values()) or START
        self.values["weight_decay"] = start
        # Parameterisations decay some matrices more than others: the proportions stay.
        self._decayed = {key: decay / start if max(decays.values()) else 1.0 for key, decay in decays.items()}
        finer: list[Group] = []
        for group in groups:
            ours = [p for p in group["params"] if id(p) in gated]
            others = [p for p in group["params"] if id(p) not in gated]
            finer += [{**group, "params": others}] if others else []
            finer += [{**group, "params": ours, "weight_decay": 0.0}] if ours else []
        return finer

    def due(self, step: int, progress: float = 1.0) -> bool:
        """Whether the 0-based step is to validate."""
        return len(self.tuned) > 0 and progress >= self.warmup and step % self.every == self.every - 1

    def begin(
        self, step: int, rows: int, validating: bool = False, *, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        """Perturb the hyperparameters of the examples of a step: `rows` of them on this rank."""
        assert self.response is not None, "call groups(model, groups) first"
        device, own = self.response.device, slice(rank * rows, (rank + 1) * rows)
        draws = self.tuned.draws(seed, step, rows * world_size)
        self._validating, self._draws, self._noise = validating, draws[own], self.tuned.perturbations(draws)
        offsets, rates = self._noise[own], torch.full((rows,), self.values["dropout"])
        if validating:
            self._leaf = (offsets if self.tuned.tau else torch.zeros_like(offsets)).to(device).requires_grad_()
            self.response.begin(rows, self._leaf, None, 0, always=True)
            return
        if "dropout" in self.tuned:
            rates = self.tuned.at("dropout", offsets)
        dropping = self.values["dropout"] > 0.0
        self.response.begin(
            rows,
            offsets.to(device) if self.tuned else None,
            rates.to(device) if dropping else None,
            seed_of(seed, step, rank, 2),
        )

    def tune(self, mean: Callable[[Tensor], Tensor] = lambda value: value) -> None:
        """After the backward pass of a validation step: one step of Adam on h and s, and the weights go along.

        Args:
            mean: over ranks, where there are several.
        """
        assert self.response is not None
        if self._leaf is None or self._leaf.grad is None:
            return
        slopes = self._leaf.grad
        found = mean(torch.stack([slopes.sum(0), (slopes * self._draws.to(slopes.device)).sum(0)])).cpu()
        self.response.move(self.tuned.step(found[0], found[1]).to(slopes.device))
        self.values |= self.tuned.values()
        self.validations += 1

    def end(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """After a step: the model is the plain one again; after one of training, which says its optimizer, decay."""
        assert self.response is not None
        if optimizer is not None and "weight_decay" in self.tuned:
            self._decay(optimizer)
        self.response.end()
        self._validating, self._leaf = False, None

    def _decay(self, optimizer: torch.optim.Optimizer) -> None:
        """phi <- phi - lr lambda d/dphi mean ||w_phi(h_b)||^2 / 2, each parameter at its group's rate."""
        assert self.response is not None
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        decay = self.tuned.at("weight_decay", self._noise[0]).to(self.response.device)
        noise = self._noise.to(self.response.device)
        for gate in self.response.gates:
            decayed = [gate.linear.weight, *gate.parameters[:2]]
            with torch.enable_grad():
                slopes = torch.autograd.grad(gate.penalty(noise), decayed)
            share = self._decayed[id(gate.linear.weight)]
            with torch.no_grad():
                for parameter, slope in zip(decayed, slopes, strict=True):
                    parameter.sub_(slope * (decay * (rates[id(parameter)] * share)))

    # -- hooks of the trainer -----------------------------------------------------------------------------------------

    def setup(self, trainer: Any) -> None:
        """Set windows aside, count the response's FLOPs, and refuse what the method cannot go with."""
        if getattr(getattr(trainer, "parallel", None), "shard", False):
            raise RecipeError(
                "self_tuning_networks keeps tensors as large as the weights, which no rank has when they are sharded",
                where="training.shard",
                fix="Leave out --shard.",
            )
        if getattr(trainer.optimizer, "second_look", False) and self.tuned:
            raise RecipeError(
                "an optimizer that computes its gradient again would do so on what is held back for tuning",
                where="self_tuning_networks",
                fix="Choose an optimizer that takes one look, such as adamw or muon.",
            )
        if self.response is None:
            groups = self.groups(trainer.model, list(trainer.optimizer.param_groups))
            trainer.optimizer.param_groups.clear()
            for group in groups:
                trainer.optimizer.add_param_group(group)
        if self.tuned and hasattr(trainer, "data"):
            self._reserved = trainer.data.reserve(self.reserve)
            wide = sum(parameter.numel() for parameter in self._response_parameters())
            trainer.step_flops += 6.0 * wide * trainer.step_tokens

    def batch(self, trainer: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Perturb; in a validation step another batch (where none is held back, this one, which is not trained on)."""
        clock = trainer.clock
        validating = self.due(clock.step, clock.progress)
        if validating and self._reserved is not None:
            batch = self._reserved.batch(self.validations)
        place = {"seed": trainer.seed, "rank": trainer.rank, "world_size": trainer.world_size}
        self.begin(clock.step, len(batch["targets"]), validating, **place)
        trainer.model.train(not validating)
        return batch

    def gradients(self, trainer: Any) -> None:
        """After a validation pass: tune, and leave the optimizer nothing to do."""
        parallel = getattr(trainer, "parallel", None)
        if self._validating:
            self.tune(*([parallel.mean] if parallel is not None else []))
            trainer.optimizer.zero_grad(set_to_none=True)
        elif parallel is not None and parallel.world_size > 1:
            # The response is no part of the module whose gradients travel by themselves.
            for parameter in self._response_parameters():
                parameter.grad = parallel.mean(parameter.grad)

    def step(self, trainer: Any) -> None:
        """Decay after a step of training; write what the hyperparameters are."""
        if self._validating and "loss" in trainer.metrics:
            trainer.metrics["validation_loss"] = trainer.metrics["loss"]
        self.end(None if self._validating else trainer.optimizer)
        trainer.model.train()
        trainer.metrics |= self.values

    def skipped(self, trainer: Any) -> None:
        """A step that was not taken changes nothing."""
        self.end()
        trainer.model.train()

    def state_dict(self) -> dict[str, Any]:
        """Hyperparameters, their scales, Adam's memory of both, and the response."""
        return {
            **self.tuned.state_dict(),
            "values": dict(self.values),
            "validations": self.validations,
            "response": [parameter.detach().clone() for parameter in self._response_parameters()],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.tuned.load_state_dict(state)
        self.values, self.validations = dict(state["values"]), int(state["validations"])
        for parameter, saved in zip(self._response_parameters(), state["response"], strict=True):
            parameter.copy_(saved)

    def _response_parameters(self) -> list[Tensor]:
        gates = [] if self.response is None else self.response.gates
        return [parameter for gate in gates for parameter in gate.parameters]
