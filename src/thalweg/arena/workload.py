"""A workload: one model on one corpus under one budget, on which all arms run; and the units that come of it.

What the arms share is decided once, by planning the baseline: size, window, batch, micro-batch, precision, what is
evaluated and when. What belongs to an arm, the peak rate and the weight decay of its optimizer, comes from its own
plan. Then everything is written into the recipe, so that nothing is left to chance or to a later planner.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thalweg.arena.unit import Unit
from thalweg.arms import Choice, choices_of, parse_arm
from thalweg.budget import Budget
from thalweg.errors import ArenaError
from thalweg.laws.corpus_laws import BUILT_IN
from thalweg.planner.measure import Speed, speed
from thalweg.planner.rules import warmup
from thalweg.recipe import Recipe, put

# Held-out evaluations a run, for the curve: as many as take this share of the training's cost together (a forward pass
# is a third of a training pass), within bounds.
LEAST_EVALUATIONS, EVALUATIONS = 3, 10
EVALUATION_SHARE = 0.04
LEAST_EVALUATION_TOKENS = 8192
TUNING_SEED = 1_000_000  # nobody reports on a million seeds

# Recipe keys that a comparison itself decides.
DECIDED = {
    **{"budget": "--budget", "model": "--model", "data.corpus": "--corpus", "seed": "--seeds"},
    **{"data.evaluate_on": "nothing: one half to tune, one to report", "training.compile": "nothing: it stays off"},
    "training.keep": "nothing: finished runs keep no checkpoints",
}

Values = dict[str, Any]  # "peak_lr", "weight_decay" and "method:option" to a value


@dataclass
class Workload:
    """Where the arms meet.

    Attributes:
        model, corpus, budget: as a recipe spells them.
        settings: dotted recipe keys for all arms.
        root: folder for the runs.
    """

    model: str
    corpus: str
    budget: str
    settings: dict[str, Any] = field(default_factory=dict)
    root: Path = Path("runs/compared")
    _shared: dict[str, Any] = field(default_factory=dict, init=False)
    _plans: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _evaluated: dict[str, Any] = field(default_factory=dict, init=False)
    _timing: Speed | None = field(default=None, init=False)
    setting: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for key in self.settings:
            if key in DECIDED:
                raise ArenaError(f"{key} is not for --set here", where="--set", fix=f"Use {DECIDED[key]}.")

    @property
    def name(self) -> str:
        return f"model={self.model},corpus={self.corpus}"

    @classmethod
    def parse(cls, text: str, default: Workload) -> Workload:
        """ "model=4M,corpus=b,budget=300 steps"; what is not said is as in `default`."""
        said = {}
        for pair in text.split(","):
            key, equals, value = pair.partition("=")
            if not equals or not value.strip() or key.strip() in said:
                raise ArenaError(
                    f"cannot read {pair.strip()!r}", where=f"--workload {text!r}", fix="Write model=4M,corpus=b."
                )
            said[key.strip()] = value.strip()
        known = {name: said.pop(name, getattr(default, name)) for name in ("model", "corpus", "budget")}
        if said:
            raise ArenaError(
                f"a workload has no {next(iter(said))!r}",
                where=f"--workload {text!r}",
                fix="It has model, corpus and budget; --set is for all workloads.",
            )
        return cls(**known, settings=default.settings, root=default.root)

    def recipe(self, arm: str, extra: dict[str, Any] | None = None) -> Recipe:
        """The recipe of an arm with what the workload says, and dotted `extra` keys on top."""
        # Not the laws of a wind tunnel: it has measured the rates of one optimizer, and arms meet on equal terms.
        fields: dict[str, Any] = {"budget": self.budget, "model": self.model, "laws": BUILT_IN}
        fields["data"] = {"corpus": self.corpus}
        for key, value in {**self.settings, **(extra or {})}.items():
            put(fields, key, value)
        return Recipe.validated({**fields, **parse_arm(arm)}, where=f"arm {arm}")

    def prepare(self, baseline: str) -> None:
        """Plan the baseline; what is decided there holds for every arm."""
        plan = self._planned(self.recipe(baseline))
        chosen = plan["chosen"]
        self.setting = {
            name: chosen[name]
            for name in ("parameters", "context", "batch_size", "precision", "steps", "tokens", "vocab_size")
        }
        self._shared = {
            "model": chosen.get("model_folder") or chosen["model"],
            "data.context": chosen["context"],
            "training.batch_size": chosen["batch_size"],
            "training.micro_batch": chosen["micro_batch"],
            "training.precision": chosen["precision"],
            "training.compile": "off",
            "training.keep": 1,
        }
        room = EVALUATION_SHARE * 3 * chosen["tokens"]
        times = int(min(max(room / LEAST_EVALUATION_TOKENS, LEAST_EVALUATIONS), EVALUATIONS))
        # A time budget's tokens are a guess, and what is evaluated must not hang on one.
        tokens = LEAST_EVALUATION_TOKENS if self.timed else max(room / times, LEAST_EVALUATION_TOKENS)
        tokens = int(min(tokens, plan["data"]["held_out_tokens"] // 2))
        self._evaluated = {
            "evaluations": EVALUATIONS if self.timed else times,
            "evaluation_tokens": tokens,
            "evaluation_seconds": tokens / (3 * chosen["tokens_per_second"]),
        }

    @property
    def timed(self) -> bool:
        """Whether the budget is in seconds."""
        return Budget.parse(self.budget).unit == "seconds"

    @property
    def machine(self) -> dict[str, Any]:
        """The machine's profile, from the baseline's plan."""
        return next(iter(self._plans.values()))["machine"]

    def defaults(self, arm: str) -> Values:
        """Peak rate and weight decay of an arm that nobody has tuned."""
        return _own(self._plan(arm)["chosen"])

    def unit(self, arm: str, seed: int, values: Values | None = None, *, tuning: bool = False) -> Unit:
        """One run of an arm.

        Args:
            values: tuned values; the defaults where None.
            tuning: evaluate on the half of the held-out documents that is never reported on.
        """
        plan = self._plan(arm)
        values = {**_own(plan["chosen"]), **(values or {})}
        pinned = {
            **self._shared,
            "seed": seed,
            "data.evaluate_on": "tuning" if tuning else "reporting",
            **{f"training.{key}": value for key, value in _own(values).items()},
        }
        recipe = self.recipe(with_options(arm, values), pinned)
        chosen = {
            **plan["chosen"],
            **self._evaluated,
            **_own(values),
            "optimizer": str(recipe.optimizer),
            "schedule": str(recipe.schedule),
            "warmup": warmup(recipe.schedule).value,
        }
        return Unit(recipe, {**plan, "chosen": chosen}, self.root)

    def _plan(self, arm: str) -> dict[str, Any]:
        return self._planned(self.recipe(arm, self._shared))

    def _planned(self, recipe: Recipe) -> dict[str, Any]:
        """The plan of a recipe; each is made once, and each size is timed once for all arms."""
        from thalweg.sessions.train import make_plan

        key = recipe.toml()
        if key not in self._plans:
            self._plans[key] = make_plan(recipe, measure=self._measure)[0]
        return self._plans[key]

    def _measure(self, size: Any, recipe: Recipe, **shape: Any) -> Speed:
        """`planner.measure.speed`, remembered: what a plan takes from it here is the same for all arms."""
        # Before anything is pinned the planner compares sizes; afterwards there is one, and it has been timed.
        if not self._shared or self._timing is None:
            self._timing = speed(size, recipe, **shape)
        return self._timing


def _own(values: Values) -> Values:
    """What is an arm's own, whatever its methods are."""
    return {key: values[key] for key in ("peak_lr", "weight_decay")}


def with_options(arm: str, values: Values) -> str:
    """An arm with the "method:option" ones of some values written into it."""
    spelled = []
    for choice in choices_of(arm):
        start = f"{choice.name}:"
        own = {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}
        spelled.append(str(Choice(name=choice.name, options={**choice.options, **own})))
    return "+".join(spelled)
