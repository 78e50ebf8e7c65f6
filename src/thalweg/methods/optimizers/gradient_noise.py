"""Gradient noise: add Gaussian noise to every gradient, less and less of it.

    sigma_t^2 = eta / (1 + t)^gamma              t = optimizer steps done before this one
    g <- g + N(0, sigma_t^2)                     once a step, after accumulation and clipping

sigma is a standard deviation. The draw is a function of (seed, step, index of the parameter), so a resumed run and
every replica add the same noise.

Source: "Adding Gradient Noise Improves Learning for Very Deep Networks" (2015, arXiv:1511.06807).
Our extension, not the paper's: `relative` multiplies sigma_t by a running RMS of each parameter's gradient. Gradients
of language models are tiny (RMS near 1e-4), and with the paper's eta the noise would be all that Adam sees; so
relative noise is the default here, and `relative=False` is the paper's rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from thalweg.errors import RecipeError

# Memory of the running mean square: about ten steps, long enough to be steady, short enough to follow the warm-up.
MEMORY = 0.9


def noise_scale(step: int, eta: float, gamma: float) -> float:
    """sigma_t, the standard deviation of the noise at the 0-based step t."""
    return math.sqrt(eta / (1.0 + step) ** gamma)


def add_gradient_noise(
    parameters: Iterable[Tensor],
    step: int,
    eta: float = 0.01,
    gamma: float = 0.55,
    seed: int = 0,
    relative: Sequence[Tensor] | None = None,
) -> None:
    """Add the noise of one step to the gradients of parameters, in place.

    Args:
        parameters: in an order that is the same at every call; those without a gradient are passed over.
        step: optimizer steps done before this one.
        eta: variance of the noise at step 0; 0 changes nothing.
        gamma: how fast the variance falls.
        seed: of the run.
        relative: a scalar tensor for each parameter that sigma is multiplied by; None is the paper's rule.
    """
    sigma = noise_scale(step, eta, gamma)
    if sigma == 0.0:
        return
    for index, parameter in enumerate(parameters):
        if parameter.grad is None:
            continue
        noise = _noise(parameter.grad, _mixed(seed, step, index))
        if relative is None:
            parameter.grad.add_(noise, alpha=sigma)
        else:
            parameter.grad.addcmul_(noise, relative[index].to(noise.dtype), value=sigma)


class GradientNoise:
    """A callback that adds annealed Gaussian noise to the gradients.

    Args:
        eta: variance of the noise at step 0, in squared units of the gradient (of its RMS when relative).
        gamma: how fast the variance falls.
        relative: our extension: in units of each parameter's gradient RMS.
    """

    def __init__(self, eta: float = 0.01, gamma: float = 0.55, relative: bool = True) -> None:
        for name, value in (("eta", eta), ("gamma", gamma)):
            if not (math.isfinite(value) and value >= 0.0):
                raise RecipeError(f"{name} = {value} is not a number at or above 0", where="gradient_noise")
        self.eta, self.gamma, self.relative = eta, gamma, relative
        self._mean_squares: Tensor | None = None
        self._weight = 0.0

    @torch.no_grad()
    def gradients(self, trainer: Any) -> None:
        """Called when the gradients of a step are complete and clipped."""
        if self.eta == 0.0:
            return
        parameters = list(trainer.parameters)
        relative = self._root_mean_squares(parameters) if self.relative else None
        add_gradient_noise(parameters, trainer.clock.step, self.eta, self.gamma, trainer.seed, relative)

    def _root_mean_squares(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Running RMS of each clean gradient, with this step's in it; no value leaves the device."""
        device = parameters[0].device
        zero = torch.zeros((), device=device)
        now = torch.stack([_mean_square(p.grad) if p.grad is not None else zero for p in parameters])
        if self._mean_squares is None:
            self._mean_squares = torch.zeros_like(now)
        # The weight corrects the start at zero, as Adam corrects its moments.
        self._mean_squares = torch.lerp(now, self._mean_squares.to(device), MEMORY)
        self._weight = MEMORY * self._weight + (1.0 - MEMORY)
        return list((self._mean_squares / self._weight).sqrt().unbind())

    def state_dict(self) -> dict[str, Any]:
        """The running mean squares of the gradients."""
        if self._mean_squares is None:
            return {"weight": self._weight}
        return {"weight": self._weight, "mean_squares": self._mean_squares.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._weight = float(state["weight"])
        saved = state.get("mean_squares")
        self._mean_squares = None if saved is None else saved.clone()


def _mean_square(gradient: Tensor) -> Tensor:
    mean = gradient.float().square().mean()
    return mean.full_tensor() if isinstance(mean, DTensor) else mean


def _noise(gradient: Tensor, seed: int) -> Tensor:
    """Standard normal numbers in the layout of a gradient; a shard gets its part of the whole draw."""
    generator = torch.Generator(device=gradient.device).manual_seed(seed)
    noise = torch.randn(gradient.shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
    if isinstance(gradient, DTensor):
        return distribute_tensor(noise, gradient.device_mesh, gradient.placements, src_data_rank=None)
    return noise


def _mixed(*numbers: int) -> int:
    """One 64-bit seed from several numbers (the finaliser of splitmix64 after each), so that neighbours differ."""
    mask = (1 << 64) - 1
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state
