"""What to do with a budget: size, tokens, batch, rate, schedule and the loss to expect, each with its reason.

The size minimises a parametric law L(N, D): under a time budget larger models see fewer tokens, and how many is
measured, briefly, for the sizes near the optimum. A budget that fixes the tokens (steps, tokens, epochs) fixes no
cost, so there the size is the one that the law would pair with these tokens at least compute.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from thalweg import catalog
from thalweg.data import TokenStore
from thalweg.errors import BudgetError, ModelError
from thalweg.models.folder import load
from thalweg.models.ladder import LADDER, Shape, build, flops_per_token, nearest
from thalweg.planner import rules
from thalweg.planner.measure import Speed, speed
from thalweg.planner.profile import MachineProfile
from thalweg.recipe import Recipe

EFFICIENCY = 0.4  # share of the matmul peak that an unmeasured size is taken to reach
MEASURED = 3  # sizes near the optimum that are timed
EVALUATIONS = 4  # held-out evaluations a run, the last one included
EVALUATION_SHARE = 0.03  # of the budget, for all of them together
CLOSING_SECONDS = 2.5  # samples and report
COMPILE_WORTH_TRYING = 600.0  # seconds of training below which compiling is not even measured
MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
BYTES_PER_PARAMETER = 16  # weight, gradient and two moments in float32
ACTIVATION_BYTES = 34 * 2  # a token, a layer, a width unit: the usual count for a block, in two bytes


@dataclass(frozen=True)
class Candidate:
    """One size and what the budget would buy with it."""

    model: str
    parameters: int
    tokens_per_second: float
    tokens: float
    epochs: float
    predicted_bits_per_byte: float
    low: float
    high: float
    measured: bool
    memory: float


class Planner:
    """Plans one recipe on one machine for one token store.

    Args:
        seconds: of a time budget, what is left of it for training and closing; ignored otherwise.
        memory: bytes that training may use; None takes what the machine has free.
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
    ) -> None:
        self.recipe, self.store, self.profile = recipe, store, profile
        self.device, self.world_size = device, world_size
        self.seconds = max(seconds - CLOSING_SECONDS, 0.0) if recipe.budget.unit == "seconds" else math.inf
        self.memory = memory or 0.8 * profile.memory_available
        self.reasons: dict[str, str] = {}
        self.peaks = {
            "float32": profile.float32_flops,
            "bfloat16": profile.bfloat16_flops or profile.float32_flops,
        }
        self.precision = self._precision()
        self.speeds: dict[str, tuple[Speed, int, int]] = {}

    # -- the pieces -----------------------------------------------------------------------------------------------

    def _precision(self) -> str:
        wanted = self.recipe.training.precision
        if wanted != "auto":
            self.reasons["precision"] = "as the recipe says"
            return wanted
        fast = self.profile.bfloat16_pays
        self.reasons["precision"] = (
            f"bfloat16 matrix products are {self.peaks['bfloat16'] / self.peaks['float32']:.1f} times as fast here"
            if fast
            else "bfloat16 brings no speed on this machine"
        )
        return "bfloat16" if fast else "float32"

    @property
    def peak(self) -> float:
        return self.peaks[self.precision]

    def shapes(self) -> list[Shape]:
        """The rungs to choose from: all, or the one that the recipe names."""
        return list(LADDER) if self.recipe.model == "auto" else [nearest(self.recipe.model)]

    def tokens(self, flops: float, rate: float, batch_tokens: float) -> float:
        """Tokens that the budget buys at `flops` and 1/`rate` seconds a token."""
        budget = self.recipe.budget
        share = 1 - EVALUATION_SHARE
        return {
            "seconds": lambda: self.seconds * share * rate,
            "steps": lambda: budget.amount * batch_tokens,
            "tokens": lambda: budget.amount,
            "epochs": lambda: budget.amount * self.store.train.token_count,
            "flops": lambda: budget.amount / flops,
        }[budget.unit]()

    def rough_rate(self, shape: Shape) -> float:
        """Tokens a second of a size that was not measured, from those that were, or from the peak."""
        flops = flops_per_token(shape, self.store.vocab_size, 256)
        efficiency = EFFICIENCY
        if self.speeds:
            nearest_name = min(self.speeds, key=lambda name: abs(math.log(nearest(name).parameters / shape.parameters)))
            measured, tokens, parts = self.speeds[nearest_name]
            known = flops_per_token(nearest(nearest_name), self.store.vocab_size, 256)
            efficiency = measured.tokens_per_second(tokens, parts) * known / self.peak
        return efficiency * self.peak * self.world_size / flops

    def candidate(self, shape: Shape) -> Candidate:
        matrix_parameters = shape.parameters + self.store.vocab_size * shape.width
        rate = self.rough_rate(shape)
        flops = flops_per_token(shape, self.store.vocab_size, 256)
        tokens = self.tokens(flops, rate, self.recipe.training.batch_size or 16 * (self.recipe.data.context or 256))
        unique = self.store.train.token_count
        found = rules.predicted_bits_per_byte(matrix_parameters, max(tokens, 1.0), unique)
        activations = ACTIVATION_BYTES * MICRO_BATCH_TOKENS[self.device.type] * shape.layers * shape.width
        return Candidate(
            shape.name,
            shape.parameters,
            rate,
            tokens,
            tokens / unique,
            found.value,
            found.low,
            found.high,
            shape.name in self.speeds,
            BYTES_PER_PARAMETER * (shape.parameters + self.store.vocab_size * shape.width) + activations,
        )

    def measure(self, shape: Shape) -> None:
        """Time a size, unless that alone would eat into the budget."""
        expected = 8 * MICRO_BATCH_TOKENS[self.device.type] / self.rough_rate(shape)
        if shape.name in self.speeds or expected > 0.03 * self.seconds:
            return
        window, batch, micro = self.windows(self.candidate(shape).tokens)
        model = build(shape, self.store.vocab_size, window, 0)
        found = speed(
            model, self.recipe, context=window, micro_batch=micro, precision=self.precision, device=self.device
        )
        self.speeds[shape.name] = (found, window * micro, max(batch // self.world_size // micro, 1))

    def windows(self, tokens: float) -> tuple[int, int, int]:
        """(context, windows a step, windows a micro-batch) for so many tokens of training."""
        training, data = self.recipe.training, self.recipe.data
        most = max(self.store.train.token_count // 8, 8)
        context = rules.Decision(data.context, "as the recipe says") if data.context else rules.context(tokens, most)
        train_windows = (self.store.train.token_count - 1) // context.value
        batch = (
            rules.Decision(training.batch_size, "as the recipe says")
            if training.batch_size
            else rules.batch_windows(tokens, context.value, train_windows, self.world_size)
        )
        rows = max(batch.value // self.world_size, 1)
        micro = training.micro_batch or max(MICRO_BATCH_TOKENS[self.device.type] // context.value, 1)
        self.reasons |= {"context": context.reason, "batch_size": batch.reason}
        return context.value, batch.value, min(micro, rows)

    # -- the choice -----------------------------------------------------------------------------------------------

    def choose(self) -> tuple[Candidate, list[Candidate]]:
        """The best size and all candidates."""
        shapes = {shape.name: shape for shape in self.shapes()}
        if len(shapes) > 1:
            self._fitting(shapes)
        for _ in range(MEASURED):
            table = [self.candidate(shape) for shape in shapes.values()]
            best = self._best(table)
            if best.measured or self.seconds == math.inf:
                break
            self.measure(shapes[best.model])
        table = [self.candidate(shape) for shape in shapes.values()]
        return self._best(table), table

    def _fitting(self, shapes: dict[str, Shape]) -> None:
        for name in list(shapes):
            if self.candidate(shapes[name]).memory > self.memory and len(shapes) > 1:
                del shapes[name]
                self.reasons["memory"] = f"sizes from {name} up do not fit {self.memory / 2**30:.1f} GiB"
                for larger in [n for n in shapes if shapes[n].parameters > nearest(name).parameters]:
                    del shapes[larger]
                return

    def _best(self, table: list[Candidate]) -> Candidate:
        if len(table) == 1:
            self.reasons["model"] = "as the recipe says"
            return table[0]
        if self.recipe.budget.unit in ("seconds", "flops"):
            self.reasons["model"] = "lowest predicted loss: larger sees too few tokens, smaller can hold too little"
            return min(table, key=lambda candidate: candidate.predicted_bits_per_byte)
        law = rules.constants()["law"]
        vocabulary = self.store.vocab_size
        self.reasons["model"] = "the size that the law pairs with this many tokens at least compute"

        def imbalance(candidate: Candidate) -> float:
            size = candidate.parameters + vocabulary * nearest(candidate.model).width
            gain = law["alpha"] * law["A"] / size ** law["alpha"]
            return abs(math.log(gain / (law["beta"] * law["B"] / candidate.tokens ** law["beta"])))

        return min(table, key=imbalance)

    def plan(self) -> dict[str, Any]:
        """The whole plan as plain data; see docs/architecture.md for its keys."""
        folder = Path(self.recipe.model)
        if self.recipe.model != "auto" and (folder.is_dir() or "/" in self.recipe.model):
            chosen, table = self._own_model(folder)
        else:
            best, table = self.choose()
            shape = nearest(best.model)
            chosen = self._chosen(shape, best)
        return {
            "budget": str(self.recipe.budget),
            "corpus": self.recipe.data.corpus,
            "chosen": chosen,
            "candidates": [asdict(candidate) for candidate in table],
            "reasons": self.reasons,
            "machine": self.profile.to_dict() | {"peak_flops": self.peaks},
            "law": rules.constants()["law"] | {"source": rules.constants()["source"]},
            "data": {
                "content_hash": self.store.manifest["content"],
                "train_tokens": self.store.train.token_count,
                "held_out_tokens": self.store.held_out.token_count,
                "bytes_per_token": self.store.train.byte_count / self.store.train.token_count,
            },
        }

    def _chosen(self, shape: Shape, best: Candidate) -> dict[str, Any]:
        size = {"model": shape.name, "layers": shape.layers, "width": shape.width, "heads": shape.heads}
        size |= {"feed_forward": shape.feed_forward, "parameters": shape.parameters, "tie": shape.tied}
        return self._decide(size, best)

    def _own_model(self, folder: Path) -> tuple[dict[str, Any], list[Candidate]]:
        model, _ = load(folder)
        config: Any = model.config
        if self.store.vocab_size > config.vocab_size:
            raise ModelError(
                f"the tokenizer has {self.store.vocab_size} entries, the model knows {config.vocab_size}",
                where=str(folder),
                fix=f'Set data.tokenizer = "{folder}" to train with the model\'s own tokenizer.',
            )
        window = min(self.recipe.data.context or 512, getattr(config, "max_position_embeddings", 512) or 512)
        flops = flops_per_token(model, context=window)
        parameters = round(flops / 6)
        self.reasons["model"] = "as the recipe says"
        rows = max(MICRO_BATCH_TOKENS[self.device.type] // window, 1)
        found = speed(
            model, self.recipe, context=window, micro_batch=rows, precision=self.precision, device=self.device
        )
        rate = found.tokens_per_second(rows * window, 1) * self.world_size
        tokens = self.tokens(flops, rate, (self.recipe.training.batch_size or 16) * window)
        unique = self.store.train.token_count
        nothing = float("nan")
        best = Candidate(
            str(folder), parameters, rate, tokens, tokens / unique, nothing, nothing, nothing, True, 16.0 * parameters
        )
        size = {"model": str(folder), "model_folder": str(folder), "layers": config.num_hidden_layers}
        size |= {"width": config.hidden_size, "heads": config.num_attention_heads, "tie": None}
        size |= {"parameters": parameters, "feed_forward": getattr(config, "intermediate_size", None)}
        self.recipe = self.recipe.model_copy(update={"data": self.recipe.data.model_copy(update={"context": window})})
        return self._decide(size, best), []

    def _decide(self, size: dict[str, Any], best: Candidate) -> dict[str, Any]:
        """Everything that follows from the size and the tokens."""
        window, batch, micro = self.windows(best.tokens)
        training, card = self.recipe.training, catalog.lookup(self.recipe.optimizer.name)
        tokens = (
            self.tokens(best.tokens and 1.0, best.tokens_per_second, batch * window)
            if (self.recipe.budget.unit == "steps")
            else best.tokens
        )
        steps = int(self.recipe.budget.amount) if self.recipe.budget.unit == "steps" else int(tokens / (batch * window))
        if steps < 1:
            raise BudgetError(
                f"the budget {self.recipe.budget} does not pay for one step of {batch * window} tokens",
                where=f"model {size['model']}",
                fix="Give a larger budget, or a smaller batch_size, context or model.",
            )
        if steps * batch * window > tokens * 1.0001 and self.recipe.budget.unit == "seconds":
            steps = max(steps, 1)
        epochs = steps * batch * window / self.store.train.token_count
        lr = (
            rules.Decision(training.peak_lr, "as the recipe says")
            if training.peak_lr
            else rules.peak_lr(card, size["width"], batch * window)
        )
        decay = (
            rules.Decision(training.weight_decay, "as the recipe says")
            if training.weight_decay is not None
            else rules.weight_decay(card, epochs, best.parameters / self.store.train.token_count)
        )
        self.reasons |= {"peak_lr": lr.reason, "weight_decay": decay.reason}
        matrix_parameters = best.parameters + self.store.vocab_size * size["width"]
        found = rules.predicted_bits_per_byte(matrix_parameters, steps * batch * window, self.store.train.token_count)
        seconds = steps * batch * window / best.tokens_per_second
        return size | {
            "vocab_size": self.store.vocab_size,
            "context": window,
            "batch_size": batch,
            "micro_batch": micro,
            "peak_lr": lr.value,
            "lr_scale": card.defaults.get("lr_scale", {}),
            "weight_decay": decay.value,
            "schedule": str(self.recipe.schedule),
            "optimizer": str(self.recipe.optimizer),
            "precision": self.precision,
            "compile": self._compile(size, window, micro, seconds),
            "threads": self.profile.threads,
            "steps": steps,
            "tokens": steps * batch * window,
            "epochs": epochs,
            "tokens_per_second": best.tokens_per_second,
            "seconds": seconds,
            "predicted_bits_per_byte": found.value,
            "predicted_low": found.low,
            "predicted_high": found.high,
            **self._evaluation(best, seconds),
        }

    def _evaluation(self, best: Candidate, seconds: float) -> dict[str, Any]:
        """How much to evaluate, so that it costs about `EVALUATION_SHARE` of the run (a forward pass is a third)."""
        share = EVALUATION_SHARE * seconds * best.tokens_per_second * 3 / EVALUATIONS
        tokens = int(min(max(share, 8192), self.store.held_out.token_count))
        return {
            "evaluations": EVALUATIONS,
            "evaluation_tokens": tokens,
            "evaluation_seconds": tokens / (3 * best.tokens_per_second),
            "checkpoint_seconds": 0.2 + 16 * best.parameters / 3e8,
        }

    def _compile(self, size: dict[str, Any], window: int, micro: int, seconds: float) -> bool:
        wanted = self.recipe.training.compile
        if wanted != "auto":
            self.reasons["compile"] = "as the recipe says"
            return wanted == "on"
        if seconds < COMPILE_WORTH_TRYING or "model_folder" in size:
            self.reasons["compile"] = "off: too little training for compilation to pay back"
            return False
        shape = nearest(size["model"])
        arguments = {"context": window, "micro_batch": micro, "precision": self.precision, "device": self.device}
        plain = self.speeds[shape.name][0] if shape.name in self.speeds else None
        plain = plain or speed(build(shape, self.store.vocab_size, window, 0), self.recipe, **arguments)
        try:
            quick = speed(build(shape, self.store.vocab_size, window, 0), self.recipe, compiled=True, **arguments)
        except Exception as error:  # the compiler's own failures: many kinds, and training works without it
            self.reasons["compile"] = f"off: compilation failed here ({type(error).__name__})"
            return False
        saved = seconds * (1 - quick.micro_batch / plain.micro_batch) - quick.first
        self.reasons["compile"] = (
            f"{quick.first:.0f} s to compile, {plain.micro_batch / quick.micro_batch - 1:.0%} faster: "
            f"{'saves' if saved > 0 else 'would lose'} {abs(saved):.0f} s of {seconds:.0f} s"
        )
        return saved > 0
