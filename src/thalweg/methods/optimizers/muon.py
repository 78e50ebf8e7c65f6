"""Muon: momentum for hidden matrices, with every direction of the update given the same length.

    B = beta B + (1 - beta) G                   G [m, n] the gradient of a hidden weight
    U = (1 - beta) G + beta B                   (Nesterov; without it U = B)
    O = NewtonSchulz(U)                         about U's polar factor, see `newton_schulz`
    W = W (1 - lr wd) - lr scale O

Embeddings, heads and vectors get AdamW inside the same optimizer: this works on `parameter_groups(model)` as is.

The scale says what a learning rate means; numbers are comparable within one scale only:

    kimi      0.2 sqrt(max(m, n))     update of RMS about 0.2, as AdamW's: one learning rate and decay serve both
    kj        sqrt(max(1, m / n))     the first implementation; learning rates near 0.02
    spectral  sqrt(m / n)             steepest descent under the RMS-to-RMS norm
    none      1

Sources: "Muon: An optimizer for hidden layers in neural networks" (Jordan and others, 2024, blog post); kimi:
"Muon is Scalable for LLM Training" (2025, arXiv:2502.16982). Where we deviate: kimi's scale is the default, and
AdamW's eps is 1e-8 like that of our AdamW (theirs 1e-10), so that the two arms differ in the matrices alone.
A fused query-key-value weight is treated as one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer, ParamsT

from thalweg.errors import RecipeError
from thalweg.methods.optimizers.adamw import can_fuse, materialised
from thalweg.methods.optimizers.newton_schulz import newton_schulz_list

SCALES = ("kimi", "kj", "spectral", "none")
DTYPES = ("auto", "bfloat16", "float32")


class Muon(Optimizer):
    """Muon for groups of kind "matrix", AdamW for the others.

    Given plain parameters, or groups without "kind", those with two and more dimensions count as matrices and the
    others as vectors. Embeddings and output heads have two dimensions too but do not want Muon: pass them in a group
    with kind="embedding" or "head", or take the groups from `parameter_groups(model)`.

    Three dimensions are a stack of matrices (experts), four and more a filter [out, rest].

    Args:
        params: parameters or groups.
        lr: learning rate for both parts.
        weight_decay: decoupled, multiplied by the learning rate.
        momentum: memory of the gradient, beta above.
        nesterov: look ahead by one step of momentum.
        ns_steps: Newton-Schulz iterations.
        scale: kimi, kj, spectral or none, see above.
        dtype: number format of the iteration: auto, bfloat16 or float32.
        beta1: AdamW part, memory of the first moment.
        beta2: AdamW part, memory of the second moment.
        eps: AdamW part, added to the root of the second moment.

    Raises:
        RecipeError: an option out of range, or a matrix group with a vector in it.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        scale: str = "kimi",
        dtype: str = "auto",
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        _check(lr=lr, weight_decay=weight_decay, momentum=momentum, ns_steps=ns_steps, beta1=beta1, beta2=beta2)
        _check_choice("scale", scale, SCALES)
        _check_choice("dtype", dtype, DTYPES)
        entries = materialised(params)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "scale": scale,
            "dtype": dtype,
            "betas": (beta1, beta2),
            "eps": eps,
            "kind": "by_dimension",
            "transposed": False,
            # Also tells torch's load_state_dict to keep the step counters in float32 beside their parameters.
            "fused": can_fuse(entries),
        }
        super().__init__(entries, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its "kind" says which of the two rules it gets."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        flat = [parameter for parameter in group["params"] if parameter.ndim < 2]
        if group["kind"] == "matrix" and flat:
            self.param_groups.pop()
            raise RecipeError(
                f"a group of kind 'matrix' holds a parameter of shape {tuple(flat[0].shape)}",
                where="optimizer muon",
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
                raise RuntimeError("Muon does not support sparse gradients: build the embedding with sparse=False")
            matrices = [parameter for parameter in parameters if _is_matrix(parameter, group["kind"])]
            others = [parameter for parameter in parameters if not _is_matrix(parameter, group["kind"])]
            if matrices:
                self._matrix_step(group, matrices)
            if others:
                self._adamw_step(group, others)
        return loss

    def _matrix_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        # Elementwise maths runs on each rank's own shard; only the iteration needs whole matrices.
        weights = [_local(parameter) for parameter in parameters]
        gradients = [_local(parameter.grad) for parameter in parameters]
        buffers = [_local(self.state[parameter]["momentum_buffer"]) for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1.0 - group["momentum"])
        if group["nesterov"]:
            updates = list(torch._foreach_lerp(gradients, buffers, group["momentum"]))
        else:
            updates = buffers
        directions = self._directions(group, parameters, updates)
        sizes = [_scale(parameter.shape, group) for parameter in parameters]
        torch._foreach_mul_(directions, sizes)
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, directions, alpha=-group["lr"])

    def _directions(self, group: dict[str, Any], parameters: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
        """The polar factors of the updates, in the layout of the parameters."""
        whole = [_gathered(update, parameter) for update, parameter in zip(updates, parameters, strict=True)]
        stacks = [_as_matrices(update) for update in whole]
        pieces = [matrix for stack in stacks for matrix in stack.unbind()]
        factors = iter(newton_schulz_list(pieces, group["ns_steps"], group["dtype"]))
        directions = []
        for parameter, update, stack in zip(parameters, whole, stacks, strict=True):
            own = [next(factors) for _ in range(len(stack))]
            direction = own[0] if len(own) == 1 else torch.stack(own)
            directions.append(_scattered(direction.reshape(update.shape), parameter))
        return directions

    def _adamw_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                device = parameter.device if group["fused"] else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        adamw(
            [_local(parameter) for parameter in parameters],
            [_local(parameter.grad) for parameter in parameters],
            [_local(self.state[parameter]["exp_avg"]) for parameter in parameters],
            [_local(self.state[parameter]["exp_avg_sq"]) for parameter in parameters],
            [],
            [self.state[parameter]["step"] for parameter in parameters],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _is_matrix(parameter: Tensor, kind: str) -> bool:
    return parameter.ndim >= 2 if kind == "by_dimension" else kind == "matrix"


def _as_matrices(update: Tensor) -> Tensor:
    """A view [stack, m, n]: three dimensions are a stack already, more are one filter [out, rest]."""
    if update.ndim == 3:
        return update
    return update.flatten(1).unsqueeze(0)


def _scale(shape: torch.Size, group: dict[str, Any]) -> float:
    """The factor on the polar factor of one parameter."""
    rows, columns = (shape[1], shape[2]) if len(shape) == 3 else (shape[0], math.prod(shape[1:]))
    if group["transposed"]:
        rows, columns = columns, rows
    if group["scale"] == "kimi":
        return 0.2 * math.sqrt(max(rows, columns))
    if group["scale"] == "kj":
        return math.sqrt(max(1.0, rows / columns))
    return math.sqrt(rows / columns) if group["scale"] == "spectral" else 1.0


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _gathered(local: Tensor, parameter: Tensor) -> Tensor:
    """The whole update of a parameter whose shard this rank holds."""
    if not isinstance(parameter, DTensor):
        return local
    sharded = DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return sharded.full_tensor()


def _scattered(direction: Tensor, parameter: Tensor) -> Tensor:
    """This rank's shard of a whole tensor that every rank has computed alike."""
    if not isinstance(parameter, DTensor):
        return direction
    mesh, placements = parameter.device_mesh, parameter.placements
    return _local(distribute_tensor(direction, mesh, placements, src_data_rank=None))


def _check(**options: float) -> None:
    for name, value in options.items():
        if name in ("momentum", "beta1", "beta2"):
            good, bounds = 0.0 <= value < 1.0, "in [0, 1)"
        elif name == "ns_steps":
            good, bounds = value >= 1, "at least 1"
        else:
            good, bounds = 0.0 <= value < math.inf, "a number at or above 0"
        if not good:
            raise RecipeError(f"{name} = {value} is not {bounds}", where="optimizer muon")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        known = ", ".join(choices)
        raise RecipeError(f"{name} = {value!r} is not known", where="optimizer muon", fix=f"Choose from {known}.")
