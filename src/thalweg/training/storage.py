"""A trainer's checkpoint on disk: what goes where, for one rank, for DDP and for FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from thalweg.errors import RunError
from thalweg.models.folder import save as save_model
from thalweg.training.checkpoints import CheckpointFolder, disk_error, read_state, write_state
from thalweg.training.snapshot import load_weights, restore_training_state, training_state

if TYPE_CHECKING:
    from thalweg.training.trainer import Trainer


def save_checkpoint(trainer: Trainer, folder: CheckpointFolder, tokenizer: Any) -> Path:
    """Write and publish a checkpoint of the trainer's whole state; a full disk is a `RunError`.

    All ranks call it; rank 0 writes, and under FSDP2 every rank writes its share of the optimizer's tensors.
    """
    step = trainer.clock.step
    working = folder.folder / f".step-{step:08d}.tmp"
    with _disk_trouble(trainer, folder):
        if trainer.parallel.main:
            folder.begin(step)
            trainer.run.append({"event": "checkpoint", "step": step, "seconds": round(trainer.clock.seconds, 4)})
        trainer.parallel.barrier()
        state = training_state(trainer)
        if trainer.parallel.shard:
            weights = _full_weights(trainer)
            state["optimizer_values"] = _save_sharded_optimizer(trainer, working / "optimizer")
        else:
            weights = None
            state["optimizer"] = trainer.optimizer.state_dict()
        if trainer.parallel.main:
            # The metrics written so far belong to this checkpoint; a resumed run continues the file from here.
            state["metrics_bytes"] = trainer.run.sync_metrics()
            save_model(trainer.model, tokenizer, working, state_dict=weights)
            write_state(working, state)
            folder.commit(working, step)
        trainer.parallel.barrier()
    return folder.path(step)


@contextmanager
def _disk_trouble(trainer: Trainer, folder: CheckpointFolder) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        told = disk_error(error, folder.folder)
        if told is None:
            raise
        folder.discard_unfinished()
        raise told from error


def load_checkpoint(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Load a checkpoint into a trainer that was built from the same recipe and plan; returns its state."""
    state = read_state(folder)
    _load_learnt(trainer, folder, state)
    restore_training_state(trainer, state)
    return state


def inherit_checkpoint(trainer: Trainer, folder: Path, *, moments: bool) -> None:
    """Begin a new run where another one left off: its weights, and the optimizer's memory if `moments`.

    Clock, schedule, callbacks and random state are the new run's own, and so are rate and weight decay.
    """
    state = read_state(folder)
    own = [{key: value for key, value in group.items() if key != "params"} for group in trainer.optimizer.param_groups]
    if moments:
        _load_learnt(trainer, folder, state)
        for group, values in zip(trainer.optimizer.param_groups, own, strict=True):
            group.update(values)
    elif trainer.parallel.shard:
        _load_full_weights(trainer, folder)
    else:
        load_weights(trainer.model, folder, trainer.parallel.device)


def _load_learnt(trainer: Trainer, folder: Path, state: dict[str, Any]) -> None:
    """Weights and optimizer."""
    now = {"size": trainer.plan["batch_size"], "context": trainer.plan["context"]}
    if state["batch"] != now:
        raise RunError(
            f"the checkpoint was trained with batch {state['batch']}, the plan says {now}", where=str(folder)
        )
    if trainer.parallel.shard:
        _load_full_weights(trainer, folder)
        _load_sharded_optimizer(trainer, folder / "optimizer", state["optimizer_values"])
    else:
        load_weights(trainer.model, folder, trainer.parallel.device)
        trainer.optimizer.load_state_dict(state["optimizer"])


# -- FSDP2 ----------------------------------------------------------------------------------------------------------


def _full_weights(trainer: Trainer) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = get_model_state_dict(trainer.model, options=options)
    # A tied head is the embedding under a second name; it is stored once, as from an unsharded model.
    first = {name for name, _ in trainer.model.named_parameters()}
    every = {name for name, _ in trainer.model.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in found.items() if name in first or name not in every}


def _load_full_weights(trainer: Trainer, folder: Path) -> None:
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(path)
    # A tied head is stored once; the sharded model knows it under both names.
    own = trainer.model.state_dict()
    embedding = trainer.model.get_input_embeddings().weight
    for name in set(own) - set(tensors):
        source = next(key for key in tensors if own[key].shape == own[name].shape and _same(trainer, key, embedding))
        tensors[name] = tensors[source]
    set_model_state_dict(trainer.model, tensors, options=StateDictOptions(full_state_dict=True))


def _same(trainer: Trainer, name: str, parameter: Any) -> bool:
    return dict(trainer.model.named_parameters(remove_duplicate=False)).get(name) is parameter


def _optimizer_state(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state under parameter names: (tensors, plain values)."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(flatten_optimizer_state_dict=True)
    flat: dict[str, Any] = get_optimizer_state_dict(trainer.model, trainer.optimizer, options=options)
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in flat.items() if key not in tensors}


def _save_sharded_optimizer(trainer: Trainer, folder: Path) -> dict[str, Any]:
    import torch.distributed.checkpoint as dcp

    tensors, values = _optimizer_state(trainer)
    dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    return values


def _load_sharded_optimizer(trainer: Trainer, folder: Path, values: dict[str, Any]) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    tensors, _ = _optimizer_state(trainer)
    dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    state: dict[str, Any] = {**tensors, **values}
    set_optimizer_state_dict(trainer.model, trainer.optimizer, state, options=options)
