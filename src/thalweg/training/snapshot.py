"""The whole state of training as one nested dict, taken from and given back to a trainer.

Used by checkpoints (through files) and, in memory, by parts that try something and go back (`trainer.snapshot`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from thalweg.errors import RunError
from thalweg.training.checkpoints import random_state, restore_random_state

if TYPE_CHECKING:
    from thalweg.training.trainer import Trainer


def part_names(trainer: Trainer) -> dict[str, Any]:
    """Every part that keeps state, except the optimizer, by a name that a resumed run finds again."""
    parts = {"schedule": trainer.schedule, "objective": trainer.objective, "reweighting": trainer.reweighting}
    parts |= {f"callback/{getattr(part, 'name', type(part).__name__)}": part for part in trainer.callbacks}
    return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}


def training_state(trainer: Trainer) -> dict[str, Any]:
    """All that is not the model or the optimizer: clock, parts, random state, metrics position."""
    return {
        "clock": trainer.clock.state_dict(),
        "lr_scale": trainer.lr_scale,
        "parts": {name: part.state_dict() for name, part in part_names(trainer).items()},
        "random": random_state(trainer.parallel.device),
        "batch": {"size": trainer.plan["batch_size"], "context": trainer.plan["context"]},
    }


def restore_training_state(trainer: Trainer, state: dict[str, Any]) -> None:
    """Give back what `training_state` took."""
    trainer.clock.load_state_dict(state["clock"])
    trainer.lr_scale = state["lr_scale"]
    parts = part_names(trainer)
    for name, part_state in state["parts"].items():
        if name not in parts:
            raise RunError(f"the checkpoint holds state of {name}, which this run does not have")
        parts[name].load_state_dict(part_state)
    restore_random_state(state["random"], trainer.parallel.device)


def take_snapshot(trainer: Trainer) -> dict[str, Any]:
    """Copies of all that moves when training goes on, to go back to: weights, optimizer, random state, and the state
    of the recipe's other parts.

    Left out are the clock and what follows it (schedule, evaluation, checkpoints, metrics): going back gives back no
    budget. Each rank copies what it holds. The copies are tensors and plain data, so they can be kept in checkpoints.
    """
    return _copied(
        {
            "weights": _weights(trainer),
            "optimizer": trainer.optimizer.state_dict(),
            "parts": {name: part.state_dict() for name, part in _moving_parts(trainer).items()},
            "random": random_state(trainer.parallel.device),
        }
    )


@torch.no_grad()
def restore_snapshot(trainer: Trainer, snapshot: dict[str, Any]) -> None:
    """Go back to a snapshot, as often as one likes: it stays as it is."""
    for name, tensor in _weights(trainer).items():
        tensor.copy_(snapshot["weights"][name])
    # Copied once more, since optimizers and callbacks adopt the tensors that they are given and write into them.
    trainer.optimizer.load_state_dict(_copied(snapshot["optimizer"]))
    for name, part in _moving_parts(trainer).items():
        part.load_state_dict(_copied(snapshot["parts"][name]))
    restore_random_state(snapshot["random"], trainer.parallel.device)


def _weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {**dict(trainer.model.named_parameters()), **dict(trainer.model.named_buffers())}


def _moving_parts(trainer: Trainer) -> dict[str, Any]:
    """Of the parts with state, those that the recipe chose to shape the trajectory."""
    chosen = {"objective", "reweighting", *(f"callback/{choice.name}" for choice in trainer.recipe.callbacks)}
    return {name: part for name, part in part_names(trainer).items() if name in chosen}


def _copied(value: Any) -> Any:
    """Nested plain data with every tensor cloned."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


def load_weights(model: torch.nn.Module, folder: Path, device: torch.device) -> None:
    """Load a checkpoint's weights into an unsharded model in place, exactly."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(path, device=str(device))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    # A tied head is stored once, under the embedding's name.
    tied = {name for name in missing if any(p is model.get_parameter(name) for p in _stored(model, tensors))}
    if unexpected or set(missing) - tied:
        raise RunError("the checkpoint's weights do not fit the model", where=str(folder))


def _stored(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters(remove_duplicate=False) if name in tensors]
