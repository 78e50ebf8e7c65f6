"""What to do with a budget: size, tokens, batch, rate, schedule and the loss to expect, each with its reason.

The order is the order of dependence: the situation, the size (`candidates`), what follows from the size (the step's
layout, `rules`), whether to compile, and how often to look up from training. A mistake in the recipe shows before
anything is measured.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from thalweg import catalog
from thalweg.data import TokenStore
from thalweg.errors import BudgetError
from thalweg.planner import assumptions, rules
from thalweg.planner.candidates import Candidate, Candidates
from thalweg.planner.compiling import decide_compile, require_compiler
from thalweg.planner.measure import Measure, speed
from thalweg.planner.profile import MachineProfile
from thalweg.planner.rules import AS_SAID, Decision
from thalweg.planner.situation import situation
from thalweg.planner.speeds import Speeds
from thalweg.recipe import Recipe


class Planner:
    """Plans one recipe on one machine for one token store.

    Args:
        device: of this rank. world_size: ranks that share a step.
        seconds: of a time budget, what is left of it for training and closing; ignored otherwise.
        memory: bytes that all ranks of this machine together may use; None takes what is free.
        measure: times a size; `thalweg.planner.measure.speed`, or something with its signature.

    Raises:
        UserError: whatever in the recipe, the corpus or the budget makes no run. Memory and time limits are checked
            here, all else in `plan`.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: TokenStore,
        profile: MachineProfile,
        *,
        device: torch.device,
        world_size: int = 1,
        seconds: float = math.inf,
        memory: float | None = None,
        measure: Measure = speed,
    ) -> None:
        self.profile = profile
        self.here = situation(
            recipe, store, profile, device=device, world_size=world_size, seconds=seconds, memory=memory
        )
        self.speeds = Speeds(self.here, measure)
        self.candidates = Candidates(self.here, self.speeds)

    def plan(self) -> dict[str, Any]:
        """The whole plan as plain data that JSON can hold; see docs/architecture.md for its keys."""
        recipe, store = self.here.recipe, self.here.store
        self._check()
        chosen, table, reason = self.candidates.choose()
        steps = self._steps(chosen)
        decisions = {"model": Decision(chosen.size.name, reason), **self._decisions(chosen, steps)}
        numbers = self._numbers(chosen, steps)
        return {
            "budget": str(recipe.budget),
            "corpus": recipe.data.corpus,
            "chosen": {
                **chosen.size.described(),
                **{name: decision.value for name, decision in decisions.items()},
                **numbers,
            },
            "candidates": [candidate.row() for candidate in table],
            "reasons": {name: decision.reason for name, decision in decisions.items()},
            "machine": self.profile.to_dict() | {"peak_flops": self.here.peaks},
            "law": self.here.laws.described(),
            "data": {
                "content_hash": store.manifest["content"],
                "train_tokens": store.train.token_count,
                "held_out_tokens": store.held_out.token_count,
                "bytes_per_token": store.train.byte_count / store.train.token_count,
            },
        }

    def _check(self) -> None:
        """Find what can be found wrong before time is spent on measuring; the first table checks the corpus."""
        recipe = self.here.recipe
        require_compiler(self.here)
        if recipe.training.peak_lr is None:
            rules.peak_lr(catalog.lookup(recipe.optimizer.name), 1, self.here.laws)
        self.candidates.table()

    def _steps(self, chosen: Candidate) -> int:
        """Whole steps that the budget pays for, counted as the clock counts.

        A time budget that seems just too short gets one step: a busy moment while measuring must not refuse a run.
        """
        budget, step_tokens = self.here.recipe.budget, chosen.layout.tokens
        affordable = budget.amount if budget.unit == "steps" else chosen.tokens / step_tokens
        # A hair of rounding is forgiven, as by the clock: 2 epochs of 3 steps are 6 steps.
        steps = int(affordable * (1 + 1e-9))
        if self.here.timed and affordable >= 1 / assumptions.UNKNOWN_MACHINE:
            steps = max(steps, 1)
        if steps < 1:
            raise BudgetError(
                f"the budget {budget} does not pay for one step of {step_tokens} tokens",
                where=f"model {chosen.size.name}",
                fix="Give a larger budget, or a smaller batch_size, context or model.",
            )
        return steps

    def _decisions(self, chosen: Candidate, steps: int) -> dict[str, Decision]:
        """Everything that follows from the size and the steps, by its key in the plan."""
        recipe, size = self.here.recipe, chosen.size
        training, card = recipe.training, catalog.lookup(recipe.optimizer.name)
        unique = self.here.store.train.token_count
        if training.peak_lr is not None:
            lr = Decision(training.peak_lr, AS_SAID)
        else:
            base = rules.base_width(recipe.callbacks, size.width)
            lr = (rules.peak_lr_of_trained if size.own else rules.peak_lr)(card, base.value, self.here.laws)
            lr = Decision(lr.value, lr.reason + base.reason)
        if training.weight_decay is not None:
            decay = Decision(training.weight_decay, AS_SAID)
        else:
            decay = rules.weight_decay(card, steps * chosen.layout.tokens / unique, size.parameters / unique)
        return {
            "context": chosen.layout.context,
            "batch_size": chosen.layout.batch,
            "peak_lr": lr,
            "weight_decay": decay,
            "warmup": rules.warmup(recipe.schedule),
            "schedule": rules.method(recipe.schedule, "schedule"),
            "optimizer": rules.method(recipe.optimizer, "optimizer"),
            "precision": self.here.precision,
            "compile": decide_compile(self.here, self.speeds, chosen),
        }

    def _numbers(self, chosen: Candidate, steps: int) -> dict[str, Any]:
        """What is counted and forecast, and what the trainer has to know besides."""
        tokens, unique = steps * chosen.layout.tokens, self.here.store.train.token_count
        forecast = chosen.forecast
        if not chosen.size.own:
            # What the runs before this one have read counts, too.
            start = self.here.recipe.start
            known = tokens + (start.tokens if start is not None else 0)
            forecast = rules.predicted_bits_per_byte(chosen.size.law_parameters, known, unique, self.here.laws)
        seconds = tokens / chosen.rate
        saving = assumptions.CHECKPOINT_BYTES * chosen.size.stored / assumptions.CHECKPOINT_RATE
        return {
            "vocab_size": self.here.store.vocab_size,
            "micro_batch": chosen.layout.micro,
            "lr_scale": dict(catalog.lookup(self.here.recipe.optimizer.name).defaults.get("lr_scale", {})),
            "threads": self.profile.threads,
            "steps": steps,
            "tokens": tokens,
            "epochs": tokens / unique,
            "tokens_per_second": chosen.rate,
            "seconds": seconds,
            "predicted_bits_per_byte": forecast.value,
            "predicted_low": forecast.low,
            "predicted_high": forecast.high,
            "checkpoint_seconds": assumptions.CHECKPOINT_SECONDS + saving,
            **self._evaluation(chosen.rate, seconds),
        }

    def _evaluation(self, rate: float, seconds: float) -> dict[str, Any]:
        """How much to evaluate, so that it costs its share of the run; a forward pass is a third of a training pass.

        A slow model has no time for many evaluations that say something, and gets the last one only.
        """
        times, most = assumptions.EVALUATIONS, self.here.store.held_out.token_count
        share = assumptions.EVALUATION_SHARE * seconds
        if self.here.timed and times * assumptions.EVALUATION_TOKENS / (3 * rate) > 3 * share:
            times = 1
        tokens = int(min(max(share * 3 * rate / times, assumptions.EVALUATION_TOKENS), most))
        return {"evaluations": times, "evaluation_tokens": tokens, "evaluation_seconds": tokens / (3 * rate)}
