"""PERP: retrain few parameters of a pruned model, in forms that keep its zeros, until most of what was lost is back.

Trained are, for a short budget and on the calibration windows, any of

    biases    every bias                              norms   gains and biases of the norms
    head      LoRA on an output table of its own      lora    `lora_prune`, `mask_lora` or `scale_lora` on every linear
                                                              layer of the blocks (`masked_lora.py` has the equations)

with AdamW, without weight decay, a tenth of the budget warming up and then down to 0 in a straight line.

    retrain        the loss is the cross-entropy of the next token
    reconstruct    block after block, the loss is mean((block(X) - Y)^2): X is what the recovered blocks before it give
                   on the calibration, Y what the dense model's block makes of X. A budget in steps is that of each
                   block, one in seconds is shared by all. The head has no part in it.

Nothing that was decided before is undone: zeros stay zero (those of `Linear.fixed.mask`; where none is recorded, those
of the weight at the start), and quantized weights stay as they are, so that of such layers only the bias is trained.

Source: "PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs" (2023, arXiv:2312.15230). Deviations: dropout
is off and gradients are not clipped; a head that shares its table with the embeddings is left alone, since a merged
LoRA would move these, too; the last rate is not 0 but that of the middle of the last step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg.budget import Budget
from thalweg.catalog import lookup
from thalweg.errors import ModelError, RecipeError
from thalweg.methods.pruning.masked_lora import adapted
from thalweg.methods.pruning.recoverable import Choice, Parts
from thalweg.models.block_inputs import BATCH_TOKENS
from thalweg.models.compression import block_linears
from thalweg.models.head import evaluation_mode
from thalweg.models.linears import linears_of
from thalweg.models.short_training import Report, ShortTraining, trainable
from thalweg.models.walker import Block, named_blocks, walk

RECONSTRUCTION_WINDOWS = 128  # as in the source
TIMED_WINDOWS = 512  # how many steps a time budget pays for is not known before


class PERP:
    """Recovery after pruning: a step that comes after the one that prunes.

    Without our trainer: prune with `Linear.prune` or with anything that sets weights to zero, then

        PERP("200 steps", peak_lr=1e-3).compress(model, windows)          windows int64 [n, T], whole windows of text

    An interruption (Ctrl-C) leaves the model with what was learnt until then.

    Args:
        budget: steps ("200 steps") or seconds ("30s").
        lora: what the linear layers of the blocks get: none, lora_prune, mask_lora or scale_lora.
        biases: train all biases.
        norms: train the parameters of norms.
        head: train a LoRA on the head, where it has a table of its own.
        rank: r of every LoRA.
        alpha: LoRA's s = alpha / rank; scale_lora has none.
        peak_lr: highest rate.
        batch: windows a step.
        mode: retrain, or reconstruct, which needs the dense model, too.
        seed: of the order of windows and the start of LoRA.

    Attributes:
        report: called after every step with (steps taken, steps in all, the step's loss), where set.
        windows_wanted: how many calibration windows are of use.
    """

    def __init__(
        self,
        budget: str = "200 steps",
        lora: str = "mask_lora",
        biases: bool = True,
        norms: bool = True,
        head: bool = True,
        rank: int = 16,
        alpha: float = 32.0,
        peak_lr: float = 1e-3,
        batch: int = 8,
        mode: str = "retrain",
        seed: int = 0,
    ) -> None:
        given = {key: value for key, value in locals().items() if key != "self"}
        lookup("perp").check(given, where="perp")
        if not (biases or norms or head or lora != "none"):
            raise RecipeError("nothing is to be trained", where="perp", fix="Set lora, biases, norms or head.")
        self.choice = Choice(lora, biases, norms, rank, alpha)
        self.head, self.mode, self.seed = head, mode, seed
        self.training = ShortTraining(Budget.parse(budget), peak_lr, batch, seed)
        self.report: Report | None = None

    @property
    def wants_original(self) -> bool:
        """Whether `compress` must be given the dense model."""
        return self.mode == "reconstruct"

    @property
    def windows_wanted(self) -> int:
        if self.mode == "reconstruct":
            return RECONSTRUCTION_WINDOWS
        budget = self.training.budget
        return int(budget.amount) * self.training.batch if budget.unit == "steps" else TIMED_WINDOWS

    def compress(self, model: Any, calibration: Tensor | None, original: Any = None) -> dict[str, Any]:
        """Recover a model in place.

        Args:
            model: any transformers causal language model, pruned.
            calibration: int64 [windows, T].
            original: the dense model that it was; only `reconstruct` looks at it.

        Returns:
            mode; steps; trained, numbers by group; share of these in all parameters; sparsity of the linear layers of
            the blocks; notes on what was left alone. retrain: loss, the mean of the first and of the last tenth of the
            steps. reconstruct: blocks, each with |block(X) - Y|^2 / |Y|^2 before and after.

        Raises:
            ModelError: nothing of what was asked for can be trained, weights that are not finite, no calibration or no
                dense model where one is needed.
            TrainingError: the loss is not finite; the model keeps what was learnt before that step.
        """
        tokens = _checked(model, calibration)
        if self.mode == "reconstruct":
            found = self._reconstruct(model, tokens, original)
        else:
            found = self._retrain(model, tokens)
        weights = [linear.weight for linear in block_linears(model).values()]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        return {"mode": self.mode, **found, "sparsity": zeros / sum(weight.numel() for weight in weights)}

    # -- the two ways ---------------------------------------------------------------------------------------------

    def _retrain(self, model: Any, tokens: Tensor) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.seed)
        parts = self.choice.parts(model, block_linears(model), generator)
        if self.head:
            self.choice.add_head(parts, model, generator)
        found = _counts([parts], model)
        device = next(model.parameters()).device

        def loss_of(rows: Tensor) -> Tensor:
            windows = tokens[rows].to(device)
            logits = model(input_ids=windows, use_cache=False).logits[:, :-1]
            return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

        losses = self._train(model, model, parts, loss_of, tokens, self.training, self.report)
        tenth = max(1, len(losses) // 10)
        ends = [statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])]
        return {"steps": len(losses), "loss": ends, **found}

    def _reconstruct(self, model: Any, tokens: Tensor, original: Any) -> dict[str, Any]:
        dense = _dense_blocks(model, original)
        generator = torch.Generator().manual_seed(self.seed)
        parts = [self.choice.parts(block, linears_of(block), generator) for _, block in named_blocks(model)]
        found, blocks, steps, started = _counts(parts, model), [], 0, time.monotonic()
        for block in walk(model, tokens):
            target, left = dense[block.index], block.count - block.index
            before = _error(block, target)
            if parts[block.index].parameters:
                losses = self._train(
                    model,
                    block.module,
                    parts[block.index],
                    partial(_distance, block, target),
                    tokens,
                    self._shared(time.monotonic() - started, left),
                    self._from(steps, left),
                )
                steps += len(losses)
            blocks.append({"error_before": before, "error_after": _error(block, target)})
        return {"steps": steps, "blocks": blocks, **found}

    def _train(
        self,
        model: Any,
        module: nn.Module,
        parts: Parts,
        loss_of: Callable[[Tensor], Tensor],
        tokens: Tensor,
        training: ShortTraining,
        report: Report | None,
    ) -> list[float]:
        at_once = max(1, BATCH_TOKENS // tokens.shape[1])
        with evaluation_mode(module), trainable(model, parts.parameters), adapted(parts.adapters):
            return training.run(parts.parameters, loss_of, len(tokens), at_once=at_once, report=report)

    def _shared(self, spent: float, blocks: int) -> ShortTraining:
        """The training of the next of so many blocks, when so many seconds are gone."""
        budget = self.training.budget
        if budget.unit == "steps":
            return self.training
        return replace(self.training, budget=Budget(max(budget.amount - spent, 1e-3) / blocks, "seconds"))

    def _from(self, steps: int, blocks: int) -> Report | None:
        """What reports the steps of one of so many blocks that are left, when so many steps were taken before."""
        report = self.report
        return report and (lambda step, total, loss: report(steps + step, steps + total * blocks, loss))


def _distance(block: Block, target: nn.Module, rows: Tensor) -> Tensor:
    """mean((block(X) - Y)^2) of some windows."""
    hidden = block.inputs(rows)
    with torch.no_grad(), evaluation_mode(target):
        wanted = block.run(hidden, target)
    return functional.mse_loss(block.run(hidden).float(), wanted.float())


@torch.no_grad()
def _error(block: Block, target: nn.Module) -> float:
    """|block(X) - Y|^2 / |Y|^2 over the whole calibration."""
    lost = whole = 0.0
    with evaluation_mode(block.module), evaluation_mode(target):
        for hidden in block.batches():
            wanted = block.run(hidden, target).float()
            lost += float((block.run(hidden).float() - wanted).square().sum(dtype=torch.float64))
            whole += float(wanted.square().sum(dtype=torch.float64))
    return lost / whole if whole else 0.0


def _counts(parts: list[Parts], model: nn.Module) -> dict[str, Any]:
    """What is trained, in numbers, and what is not, in words; ModelError where nothing is."""
    groups = [one.counts() for one in parts]
    trained = {name: sum(group[name] for group in groups) for name in groups[0]}
    notes = [note for one in parts for note in one.notes]
    total = sum(trained.values())
    if not total:
        raise ModelError(
            "Nothing of what was asked for can be trained"
            + "".join(f"; {note}" for note in dict.fromkeys(notes))
            + ".",
            where="perp",
            fix="Allow norms, biases or lora; put perp before the step that quantizes.",
        )
    return {
        "trained": trained,
        "share": total / sum(parameter.numel() for parameter in model.parameters()),
        "notes": notes,
    }


def _checked(model: nn.Module, calibration: Tensor | None) -> Tensor:
    if calibration is None or calibration.ndim != 2 or not len(calibration) or calibration.shape[1] < 2:
        raise ModelError(
            "PERP trains on calibration windows, and there are none.",
            where="perp",
            fix="Give token windows of ordinary text, int64 [windows, T], of two tokens or more each.",
        )
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                f"{name} holds values that are not finite.", where="perp", fix="Look at the steps before, or the model."
            )
    return calibration


def _dense_blocks(model: nn.Module, original: nn.Module | None) -> list[nn.Module]:
    if original is None or original is model:
        raise ModelError(
            "Reconstruction needs the dense model beside the pruned one.",
            where="perp, mode=reconstruct",
            fix="Give original=..., a second copy of the model as it was before pruning, or use mode=retrain.",
        )
    shapes = [{name: one.shape for name, one in block_linears(each).items()} for each in (model, original)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            "The dense model has other linear layers than the pruned one.",
            where="perp, mode=reconstruct",
            fix="Give the model that was pruned, as it was before.",
        )
    return [block for _, block in named_blocks(original)]
