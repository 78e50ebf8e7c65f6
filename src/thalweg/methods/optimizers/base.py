"""What every optimizer has in common: torch's contract, checked options, shards, and weights narrower than 32 bits.

A method derives from `Base`, names its card and writes `update(group, parameters)`: its arithmetic, for the parameters
of a group that have a gradient. It asks for what it works on, and gets plain tensors in the order of the parameters:

    weights(parameters)            to change in place
    grads(parameters)              not to be changed
    buffers(parameters, "name")    state, zeros at first, to change in place

Under FSDP2 these are this rank's shards: elementwise arithmetic needs no more, and what needs whole tensors takes
`gathered` and `scattered` from `sharding`.

Parameters in bfloat16 or float16 get a float32 copy as state ("master"), on which the arithmetic runs, with its state
in float32 too: steps smaller than half a unit of the last of eight bits would otherwise be lost. An element that
somebody else has changed since (it no longer rounds to the parameter) is taken from the parameter.

`update` must not read a tensor on the host: a step never waits for the device.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from thalweg import catalog
from thalweg.errors import RecipeError
from thalweg.methods.optimizers.sharding import local

NARROW = (torch.bfloat16, torch.float16)
MASTER = "master"

Group = dict[str, Any]


class Base(Optimizer):
    """A torch optimizer whose options are those of its card.

    Args:
        params: parameters, groups or named parameters; generators too.
        lr: learning rate.
        weight_decay: as the method defines it.
        options: by their names on the card; `beta1` and `beta2` become the group's `betas`.

    Raises:
        RecipeError: an option that the card does not allow, or a group of kind "matrix" with a vector in it.
    """

    card: ClassVar[str]

    def __init__(self, params: ParamsT, lr: float, weight_decay: float, **options: Any) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0.0 <= value < math.inf:
                raise RecipeError(f"{name} = {value} is not a number at or above 0", where=self.where)
        defaults: Group = {"lr": lr, "weight_decay": weight_decay}
        defaults |= catalog.lookup(self.card).check(options, where=self.where)
        if "beta1" in defaults:
            defaults["betas"] = (defaults.pop("beta1"), defaults.pop("beta2"))
        entries = materialised(params)
        # "fused" also tells torch's load_state_dict to keep step counters in float32 beside their parameters.
        defaults |= {"kind": "by_dimension", "transposed": False, "fused": can_fuse(entries)}
        super().__init__(entries, defaults)

    @property
    def where(self) -> str:
        """The place that errors name."""
        return f"optimizer {self.card}"

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; without a "kind" of `parameter_groups`, what has two dimensions counts as a matrix."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        flat = [parameter for parameter in group["params"] if parameter.ndim < 2]
        if group["kind"] == "matrix" and flat:
            self.param_groups.pop()
            raise RecipeError(
                f"a group of kind 'matrix' holds a parameter of shape {tuple(flat[0].shape)}",
                where=self.where,
                fix="Pass vectors in a group with kind='vector', or use parameter_groups(model).",
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient; gives back what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if any(parameter.grad.is_sparse for parameter in parameters):
                raise RuntimeError(
                    f"{type(self).__name__} does not support sparse gradients: build the embedding with sparse=False"
                )
            narrow = [parameter for parameter in parameters if parameter.dtype in NARROW]
            self._refresh_masters(narrow)
            self.update(group, parameters)
            if narrow:
                torch._foreach_copy_([local(parameter) for parameter in narrow], self.weights(narrow))
        return loss

    @abstractmethod
    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """One step of the parameters of a group that have a gradient; the list may be empty."""

    def weights(self, parameters: list[Tensor]) -> list[Tensor]:
        """What `update` changes in place: this rank's shards, masters of narrow parameters."""
        return [local(self.state[p][MASTER] if p.dtype in NARROW else p) for p in parameters]

    def grads(self, parameters: list[Tensor]) -> list[Tensor]:
        """This rank's shards of the gradients, in the type of the arithmetic."""
        return [local(parameter.grad).to(working_dtype(parameter)) for parameter in parameters]

    def buffers(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        """This rank's shards of a state as large as the parameters, zeros where there is none yet."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter, dtype=working_dtype(parameter))
        return [local(self.state[parameter][name]) for parameter in parameters]

    def split(self, group: Group, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Hidden matrices, and all else (embeddings, heads and vectors)."""
        if group["kind"] == "by_dimension":
            return [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        return (parameters, []) if group["kind"] == "matrix" else ([], parameters)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Torch's, but every tensor of state keeps its own type: torch would round masters to their parameters'."""
        super().load_state_dict(state_dict)
        for theirs, ours in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for key, parameter in zip(theirs["params"], ours["params"], strict=True):
                for name, value in state_dict["state"].get(key, {}).items():
                    if isinstance(value, Tensor) and value.dtype != self.state[parameter][name].dtype:
                        self.state[parameter][name] = value.to(parameter.device, copy=True)

    def _refresh_masters(self, narrow: list[Tensor]) -> None:
        for parameter in narrow:
            state = self.state[parameter]
            if MASTER not in state:
                state[MASTER] = parameter.detach().float()
            else:
                master, seen = local(state[MASTER]), local(parameter)
                master.copy_(torch.where(master.to(seen.dtype) == seen, master, seen.float()))


def working_dtype(parameter: Tensor) -> torch.dtype:
    """The type that the arithmetic and the state of a parameter have."""
    return torch.float32 if parameter.dtype in NARROW else parameter.dtype


def sides_of(parameter: Tensor) -> tuple[int, int]:
    """Rows and columns of one matrix of a parameter: three dimensions are a stack, more are one filter [out, rest]."""
    if parameter.ndim == 3:
        return parameter.shape[1], parameter.shape[2]
    return parameter.shape[0], math.prod(parameter.shape[1:])


FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def materialised(params: ParamsT) -> list[Any]:
    """Parameters, groups or named parameters with every generator among them turned into a list."""
    entries: list[Any] = list(params)
    for position, entry in enumerate(entries):
        if isinstance(entry, dict) and not isinstance(entry["params"], Tensor):
            entries[position] = {**entry, "params": list(entry["params"])}
    return entries


def can_fuse(entries: list[Any]) -> bool:
    """Whether torch's fused kernels take all of these parameters (as `materialised` gives them)."""
    for entry in entries:
        members = entry["params"] if isinstance(entry, dict) else entry
        for member in members if isinstance(members, list) else [members]:
            tensor = member[1] if isinstance(member, tuple) else member
            if tensor.device.type not in FUSED_DEVICES or not tensor.is_floating_point():
                return False
    return True
