"""AutoLRS: for each stage of training, try a few constant rates for a short while and keep the most promising one.

    warm up; then, stage after stage:
        keep the weights, the optimizer's memory and the random state
        K times:  rate <- the one that a Gaussian process wants to know most about          (rate_search)
                  train tau' steps at it; forecast the loss after tau steps                  (loss_forecast)
                  go back
        train tau steps at the rate with the lowest forecast

Rates are in units of the peak, steps of trials are charged to the budget like all others (K tau' of them for tau; the
defaults search as long as they train), and a trial meets fresh batches: the data is not rewound. The stages grow to tau
over `doublings` doublings, and the last one is stretched or shrunk so that the run ends with what it trained.

In our trainer the schedule does all this in its hooks. In a loop of your own:

    schedule = AutoLRS(stage=1000)
    for step in range(steps):
        clock = StepClock(step, (step + 1) / steps)
        loss = train_step(peak * schedule.factor(clock))
        metrics = {"loss": loss, "step": step + 1, "progress": clock.progress}
        if schedule.wants_validation:                                              # may be left out
            metrics["validation_loss"] = validate()
        order = schedule.observe(metrics)
        if order == SNAPSHOT:
            kept = copies_of(model, optimizer)
        elif order == RESTORE:
            put_back(kept, model, optimizer)

and the rate search alone, with `ask` and `tell`, is `rate_search.RateSearch`.

Source: "AutoLRS: Automatic Learning-Rate Schedule by Bayesian Optimization on the Fly" (2021, arXiv:2105.10762) and its
released code, defaults included. Where we differ: the first rate of a stage is the one in use (theirs is random);
stages may be shares of a budget; a trial that diverges is left at once and can never be chosen (theirs counts as a loss
of 1e6); full-length stages judge by the loss on one batch that no trial has trained on, the one that training goes on
with (theirs on a fixed validation set, which here would be choosing by what the run is judged by). Its forward passes
cost time, not steps. If every trial of a stage diverges, the stage trains at `low`. A checkpoint written amid a trial
holds the trial's weights; resuming goes on with the search.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from thalweg.errors import RecipeError
from thalweg.methods.schedules.base import Schedule
from thalweg.methods.schedules.loss_forecast import FEWEST, forecast_loss
from thalweg.methods.schedules.rate_search import RateSearch

GO_ON, SNAPSHOT, RESTORE = "go on", "snapshot", "restore"

_VALIDATIONS = 16  # of a trial


@dataclass
class _State:
    """Where the search stands; plain data.

    rate: the factor in use. stages: begun so far. searching: whether a trial runs. left: steps of the trial or the
    stage still to come. trial_steps, stage_steps: tau' and tau of this stage. tried: [rate, forecast] of its trials.
    losses, validations: of this trial, [step, loss]. since: [step, progress] that the pace is taken from. start_loss:
    when the first search began. judged_on: index of the batch that is validated on.
    """

    rate: float = 1.0
    stages: int = 0
    searching: bool = False
    left: int = 0
    trial_steps: int = 0
    stage_steps: int = 0
    tried: list[list[float]] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    validations: list[list[float]] = field(default_factory=list)
    since: list[float] | None = None
    start_loss: float | None = None
    judged_on: int = 0


class AutoLRS(Schedule):
    """Searches a constant learning rate for each stage of training.

    Args:
        warmup: share of the budget spent warming up; nothing is searched in it.
        low, high: range of the rates, in units of the peak; 1 is in it.
        stage: tau, what a full-length stage trains: a share of the budget below 1, steps from 1 on.
        trials: K, rates tried before a stage.
        trial: tau' / tau.
        doublings: the first stage is this many halvings shorter than the full length.
        kappa: of the confidence bound; large spreads the trials over the range.

    Raises:
        RecipeError: an option out of range.
    """

    def __init__(
        self,
        warmup: float = 0.05,
        low: float = 0.03,
        high: float = 3.0,
        stage: float = 0.05,
        trials: int = 10,
        trial: float = 0.1,
        doublings: int = 3,
        kappa: float = 1e6,
    ) -> None:
        super().__init__(warmup)
        self.low, self.high, self.kappa = float(low), float(high), float(kappa)
        self.stage, self.trials, self.trial, self.doublings = float(stage), int(trials), float(trial), int(doublings)
        checks = {
            f"low = {low}, high = {high}": 0.0 < self.low <= 1.0 <= self.high < math.inf,
            f"stage = {stage}": 0.0 < self.stage < math.inf,
            f"trials = {trials}": self.trials >= 1,
            f"trial = {trial}": 0.0 < self.trial <= 1.0,
            f"doublings = {doublings}": 0 <= self.doublings <= 60,
            f"kappa = {kappa}": 0.0 <= self.kappa < math.inf,
        }
        for said, good in checks.items():
            if not good:
                raise RecipeError(f"{said} is out of range", where="schedule autolrs", fix="See its options' bounds.")
        self._now = _State()
        self._kept: Any = None

    def shape(self, progress: float) -> float:
        """The rate in use, whatever the progress."""
        return self._now.rate

    # -- tell: what a loop says after every step ------------------------------------------------------------------

    @property
    def wants_validation(self) -> bool:
        """Whether the next `observe` should bring a "validation_loss", of the weights after the step just taken."""
        now = self._now
        every = max(now.trial_steps // _VALIDATIONS, 1)
        return now.searching and now.stages > self.doublings and (len(now.losses) + 1) % every == 0

    def observe(self, metrics: Mapping[str, float]) -> str:
        """Take in a finished step, and say what to do with the weights before the next one.

        Args:
            metrics: "loss", the training loss of the step (NaN if it was not finite); "step", the steps done;
                "progress", the share of the budget spent; "validation_loss" where it was wanted.

        Returns:
            GO_ON; SNAPSHOT: keep weights, optimizer and random state; RESTORE: go back to what was kept last.
        """
        now = self._now
        if now.since is None:
            now.since = [metrics["step"], metrics["progress"]]
        now.left -= 1
        if now.searching:
            return self._observe_trial(metrics)
        if now.left > 0 or metrics["progress"] < self.warmup or metrics["progress"] >= 1.0:
            return GO_ON
        return self._open_stage(metrics)

    def _open_stage(self, metrics: Mapping[str, float]) -> str:
        now, (step, progress) = self._now, (metrics["step"], metrics["progress"])
        assert now.since is not None
        steps, spent = step - now.since[0], progress - now.since[1]
        pace = spent / steps if steps and spent > 0.0 else progress / step
        now.since = [step, progress]
        full = self.stage / pace if self.stage < 1.0 else self.stage
        plan = plan_stage(full / 2.0 ** max(self.doublings - now.stages, 0), (1.0 - progress) / pace, self)
        if plan is None:
            # In time the pace is a guess, at the start a poor one: there may be room after all.
            now.left = math.ceil(FEWEST / self.trial)
            return GO_ON
        now.trial_steps, now.stage_steps = plan
        now.stages += 1
        now.tried = []
        now.judged_on = int(step) + self.trials * now.trial_steps
        now.start_loss = metrics["loss"] if now.start_loss is None else now.start_loss
        self._begin_trial()
        return SNAPSHOT

    def _search(self) -> RateSearch:
        now = self._now
        pairs = [(rate, value) for rate, value in now.tried]
        return RateSearch(self.low, self.high, self.kappa, first=now.rate, tried=pairs)

    def _begin_trial(self) -> None:
        now = self._now
        now.rate = self._search().ask()
        now.searching, now.left = True, now.trial_steps
        now.losses, now.validations = [], []

    def _observe_trial(self, metrics: Mapping[str, float]) -> str:
        now = self._now
        now.losses.append([len(now.losses), metrics["loss"]])
        if "validation_loss" in metrics:
            now.validations.append([len(now.losses), metrics["validation_loss"]])
        over = metrics["progress"] >= 1.0
        if now.left > 0 and not over and math.isfinite(metrics["loss"]):
            return GO_ON
        now.tried.append([now.rate, self._forecast()])
        if len(now.tried) < self.trials and not over:
            self._begin_trial()
            return RESTORE
        best = self._search().best()
        now.rate = self.low if best is None else best
        now.searching, now.left = False, now.stage_steps
        return RESTORE

    def _forecast(self) -> float:
        """The loss that this trial's rate is expected to lead to at the end of the stage; infinity if it diverged."""
        now = self._now
        if not all(math.isfinite(loss) for _, loss in [*now.losses, *now.validations]):
            return math.inf
        if len(now.validations) < FEWEST:
            places, losses = zip(*now.losses, strict=True)
            return forecast_loss(places, losses, now.stage_steps)
        places, losses = zip(*now.validations, strict=True)
        # A curve that jumped up to where training began is none that can be continued.
        if now.start_loss is not None and max(losses) >= now.start_loss:
            return losses[-1]
        return forecast_loss(places, losses, now.stage_steps)

    # -- hooks of the trainer -------------------------------------------------------------------------------------

    def setup(self, trainer: Any) -> None:
        """The snapshot goes into checkpoints, and those of sharded runs hold no tensors of schedules."""
        self._refuse_shards(trainer)

    def step(self, trainer: Any) -> None:
        """After a step: note its loss, and keep or put back weights as the search says."""
        trainer.metrics["trial"] = len(self._now.tried) + 1 if self._now.searching else 0
        self._follow(trainer, trainer.metrics["loss"])

    def skipped(self, trainer: Any) -> None:
        """After a step that was not taken, since its numbers were not finite."""
        self._follow(trainer, math.nan)

    def _follow(self, trainer: Any, loss: float) -> None:
        metrics = {"loss": loss, "step": trainer.clock.step, "progress": trainer.clock.progress}
        if self.wants_validation and math.isfinite(loss):
            metrics["validation_loss"] = loss_on(trainer, self._now.judged_on)
        order = self.observe(metrics)
        if order == SNAPSHOT:
            self._kept = trainer.snapshot()
        elif order == RESTORE:
            trainer.restore(self._kept)
            self._kept = self._kept if self._now.searching else None

    def state_dict(self) -> dict[str, Any]:
        """Where the search stands and, during one, what it goes back to."""
        return {**asdict(self._now), **({} if self._kept is None else {"kept": self._kept})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        plain = dict(state)
        self._kept = plain.pop("kept", None)
        self._now = _State(**asdict(_State(**plain)))


def plan_stage(wanted: float, remaining: float, schedule: AutoLRS) -> tuple[int, int] | None:
    """(steps of a trial, steps of the stage), or None where too little of the budget remains for a search.

    A trial needs a few steps to show where it goes, so a stage can be longer than `wanted`; if no further stage would
    fit behind it, it takes all that remains, `remaining` steps with its trials.
    """
    searched = schedule.trials * schedule.trial
    length = max(wanted, FEWEST / schedule.trial)
    if remaining < 2.0 * length * (1.0 + searched):
        length = remaining / (1.0 + searched)
    # Progress is rounded: a stage of 39.999999 steps is one of 40.
    steps = int(length * schedule.trial + 1e-6)
    if steps < FEWEST:
        return None
    last = remaining < 2.0 * max(wanted, FEWEST / schedule.trial) * (1.0 + searched)
    return steps, round(remaining - schedule.trials * steps if last else length)


@torch.no_grad()
def loss_on(trainer: Any, step: int) -> float:
    """Cross-entropy of the weights as they are on the batch of a step, averaged over ranks; nothing is changed."""
    batch, micro, module = trainer.data.batch(step), trainer.plan["micro_batch"], trainer.module
    training = module.training
    eager = torch.compiler.set_stance("force_eager") if trainer.plan["compile"] else contextlib.nullcontext()
    module.eval()
    try:
        with eager:
            parts = [
                trainer.losses({key: value[i : i + micro] for key, value in batch.items()}).float().sum()
                for i in range(0, len(batch["targets"]), micro)
            ]
    finally:
        module.train(training)
    counted = (batch["targets"] != -100).sum().clamp(min=1)
    return float(trainer.parallel.mean(torch.stack(parts).sum() / counted))
