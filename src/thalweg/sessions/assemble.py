"""From a recipe and a plan to a trainer: build the parts, in the order in which they need each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from thalweg import catalog
from thalweg.data import TokenStore, WindowSampler, part_of
from thalweg.errors import MachineError, RecipeError
from thalweg.models.attention import use_fastest_attention
from thalweg.models.blocks import decoder_blocks
from thalweg.models.folder import load
from thalweg.models.ladder import build, flops_per_token, nearest
from thalweg.models.parameter_groups import parameter_groups
from thalweg.models.surgery import installed, sets_rates
from thalweg.planner.rules import largest_divisor
from thalweg.recipe import Choice, Recipe
from thalweg.runs import Run
from thalweg.sessions.closing import Closing, Ending
from thalweg.sessions.training_data import sampler_of
from thalweg.training import process
from thalweg.training.callbacks.checkpointing import Checkpointing, Interruption
from thalweg.training.callbacks.evaluation import HeldOut
from thalweg.training.callbacks.live import LiveLine
from thalweg.training.callbacks.metrics import MetricsLog, TensorBoard
from thalweg.training.callbacks.safeguard import Safeguard
from thalweg.training.checkpoints import CheckpointFolder
from thalweg.training.clock import Clock
from thalweg.training.parallel import Parallel
from thalweg.training.token_losses import TokenLosses
from thalweg.training.trainer import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD_OUT_ROWS = 8  # windows in the fixed batch that monitors look at


def build_model(chosen: dict[str, Any], seed: int) -> PreTrainedModel:
    """The plan's model with its initial weights: a rung of the ladder, or a Hugging Face folder."""
    if chosen.get("model_folder"):
        return load(Path(chosen["model_folder"]))[0]
    return build(nearest(chosen["model"]), chosen["vocab_size"], chosen["context"], seed, tie=chosen["tie"])


def assemble(
    recipe: Recipe,
    plan: dict[str, Any],
    store: TokenStore,
    run: Run,
    parallel: Parallel,
    *,
    started: float,
    quiet: bool = False,
    show: bool = True,
) -> Trainer:
    """Build everything that the plan names and put it into a trainer.

    Args:
        started: `time.monotonic()` when the budget's time began.
        quiet: nothing on the terminal.
        show: samples, report and TensorBoard's files; the arena's runs leave them out.

    Raises:
        UserError: a batch, a monitor or a model that does not go with these ranks.
    """
    chosen = _shared_out(recipe, plan["chosen"], parallel)
    process.set_threads(max(chosen["threads"] // parallel.world_size, 1))
    torch.manual_seed(recipe.seed)
    parts = [named(choice) for choice in recipe.callbacks]
    model = _model_in_place(parts, chosen, recipe.seed, parallel)
    token_losses = TokenLosses(model, recipe.objective.build())
    partial = getattr(catalog.resolve(recipe.optimizer.name), "partial_backward", False)
    module = parallel.wrap(token_losses, decoder_blocks(model), partial)
    groups = parameter_groups(model, chosen["weight_decay"], chosen["lr_scale"])
    for part in parts:
        if sets_rates(part):
            groups = part.groups(model, groups)
    sampler = sampler_of(recipe, chosen, store, parallel)
    held_out = part_of(store.held_out, recipe.data.evaluate_on)
    trainer = Trainer(
        token_losses=token_losses,
        module=module,
        data=OnDevice(sampler, parallel.device),
        optimizer=recipe.optimizer.build(groups, lr=chosen["peak_lr"]),
        schedule=recipe.schedule.build(),
        reweighting=recipe.reweighting.build() if recipe.reweighting else None,
        clock=_clock(recipe, chosen, sampler.windows, started),
        plan=chosen,
        recipe=recipe,
        run=run,
        parallel=parallel,
        flops_per_token=flops_per_token(model, context=chosen["context"]),
        held_out=WindowSampler(held_out, chosen["context"], held_out_rows(held_out, chosen["context"]), 0),
    )
    trainer.callbacks = [*parts, *house_callbacks(plan, store, held_out, trainer, quiet=quiet, show=show)]
    return trainer


def _shared_out(recipe: Recipe, chosen: dict[str, Any], parallel: Parallel) -> dict[str, Any]:
    """The plan's choices for these ranks: a micro-batch that goes into each one's share of the batch."""
    if chosen["batch_size"] % parallel.world_size:
        raise MachineError(
            f"a batch of {chosen['batch_size']} windows cannot be divided over {parallel.world_size} ranks",
            where="training.batch_size",
            fix="Choose a batch size that is a multiple of the number of ranks.",
        )
    watching = [choice.name for choice in recipe.callbacks if catalog.lookup(choice.name).family == "monitors"]
    if parallel.shard and watching:
        raise RecipeError(
            f"{watching[0]} looks at the whole model, which no rank has when it is sharded",
            where="training.shard",
            fix="Leave out --shard or the monitor.",
        )
    micro_batch = largest_divisor(chosen["batch_size"] // parallel.world_size, chosen["micro_batch"])
    return {**chosen, "micro_batch": micro_batch}


def _model_in_place(parts: list[Any], chosen: dict[str, Any], seed: int, parallel: Parallel) -> PreTrainedModel:
    """The model as the recipe's methods prepare it, on this rank's device, ready to train."""
    model = installed(parts, build_model(chosen, seed))
    model.to(parallel.device)
    model.train()
    use_fastest_attention(model, parallel.device, chosen["precision"], chosen["context"])
    if chosen["compile"]:
        for block in decoder_blocks(model):
            block.compile()
    return model


def _clock(recipe: Recipe, chosen: dict[str, Any], windows: int, started: float) -> Clock:
    """Of the recipe's budget, for a corpus of so many windows."""
    return Clock(
        recipe.budget,
        epoch_tokens=windows * chosen["context"],
        started=started,
        step_seconds=chosen["batch_size"] * chosen["context"] / chosen["tokens_per_second"],
    )


def held_out_rows(held_out: Any, context: int) -> int:
    """Windows in the fixed held-out batch: as many as there are, up to `HELD_OUT_ROWS`."""
    return max(1, min(HELD_OUT_ROWS, (held_out.token_count - 1) // context))


class OnDevice:
    """Moves a sampler's batches to the device."""

    def __init__(self, sampler: Any, device: torch.device) -> None:
        self.sampler, self.device = sampler, device

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        batch = self.sampler.batch(step)
        if self.device.type == "cpu":
            return batch
        return {key: value.pin_memory().to(self.device, non_blocking=True) for key, value in batch.items()}

    def reserve(self, share: float) -> OnDevice:
        """Windows that no batch has from here on, as batches of their own (see `WindowSampler.reserve`)."""
        return OnDevice(self.sampler.reserve(share), self.device)


def named(choice: Choice) -> Any:
    """A callback that remembers the name its state is kept under."""
    part = choice.build()
    part.name = choice.name
    return part


def house_callbacks(
    plan: dict[str, Any], store: TokenStore, held_out: Any, trainer: Trainer, *, quiet: bool, show: bool
) -> list[Any]:
    """The house's own callbacks, which come after the recipe's. The order matters:

    monitors add numbers before the metrics line is written, the line is written before the checkpoint that
    covers it, an evaluation belongs to the checkpoint after it, and the report comes last.
    """
    chosen, training = trainer.plan, trainer.recipe.training
    bytes_per_token = store.train.byte_count / store.train.token_count
    folder = CheckpointFolder(trainer.run.checkpoints, keep=training.keep)
    house: list[Any] = [
        MetricsLog(bytes_per_token, plan["machine"]["peak_flops"][chosen["precision"]]),
        Safeguard(folder),
        HeldOut(
            held_out,
            tokens=chosen["evaluation_tokens"],
            times=chosen["evaluations"],
            interval=training.evaluate_every,
            seconds=chosen["evaluation_seconds"],
        ),
        Checkpointing(folder, store.tokenizer, training.checkpoint_every, chosen["checkpoint_seconds"]),
    ]
    if show and TensorBoard.installed():
        house.append(TensorBoard())
    if trainer.parallel.main and not quiet:
        house.append(LiveLine(bytes_per_token))
    return [
        *house,
        Interruption(),
        Ending(),
        *([Closing(held_out, store.tokenizer)] if show else []),
    ]
