"""SAM, sharpness-aware minimisation: step with the gradient of the worst weights nearby.

    e  = rho g / ||g||                      g the gradient at w; one norm over all parameters
    g' = the gradient at w + e              of the same batch
    w  = base optimizer's step with g'      taken from w

To first order w + e maximises the loss within distance rho of w, so w moves to where a whole neighbourhood is low.
Adaptive (ASAM) measures distance in units of each weight: e = rho w^2 g / || |w| g ||.

A step costs two forward and backward passes and one copy of the weights while it lasts. The second pass is asked of
the closure, as torch defines closures; `second_look` tells trainers to give one:

    loss = loss_of(model, batch); loss.backward(); optimizer.step(closure)     g is there: the closure is called once
    optimizer.step(closure)                                                    g is not: it is called twice

Gradients are used up by the step, so that a leftover g' is never taken for the next g.

Source: "Sharpness-Aware Minimization for Efficiently Improving Generalization" (Foret and others, 2020,
arXiv:2010.01412); the adaptive form: "ASAM" (Kwon and others, 2021, arXiv:2102.11600), without its small constant
beside |w|, as in the widely used PyTorch port. Where we deviate: weight decay is the base optimizer's, decoupled, and
no part of either gradient (the first implementation has it in the loss); over several ranks g is their mean, where
the first implementation lets each rank climb its own; dropout, where there is any, is drawn anew in the second pass.
The weights come back from a copy, not by subtracting e, so that nothing is lost to rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim.optimizer import ParamsT

from thalweg import catalog
from thalweg.errors import RecipeError
from thalweg.methods.optimizers.base import Base, Group
from thalweg.methods.optimizers.sharding import local


class SAM(Base):
    """Sharpness-aware steps around any optimizer of the catalogue.

    Groups and state are the base optimizer's, and so is everything else that SAM does not define itself.

    Args:
        params: parameters or groups.
        lr: the base optimizer's learning rate.
        weight_decay: as the base optimizer defines it.
        rho: distance of the second look, in the norm of all weights together.
        adaptive: measure that distance in units of each weight; rho is then about ten times as large.
        base: name of an optimizer in the catalogue; it has its default options.

    Raises:
        RecipeError: an option out of range, or a base that is no optimizer or takes a second look itself.
    """

    card = "sam"
    second_look = True
    inner: Base

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        base: str = "adamw",
    ) -> None:
        super().__init__(params, lr, weight_decay, rho=rho, adaptive=adaptive, base=base)
        method = _optimizer(base, where=self.where)
        self._own = {name: self.defaults[name] for name in ("rho", "adaptive", "base")}
        self.inner = method(self.param_groups, lr=lr, weight_decay=weight_decay)
        self.defaults |= self.inner.defaults
        self._share()
        self._warned = False

    def __getattr__(self, name: str) -> Any:
        """The base optimizer's, such as the hooks that a trainer calls."""
        if "inner" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.inner, name)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group to the base optimizer."""
        if "inner" in self.__dict__:
            self.inner.add_param_group({**self._own, **param_group})
        else:
            super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One sharpness-aware step; gives back the loss at w where the closure was asked for it, else that at w + e.

        Without a closure there is no second look: the step is the base optimizer's, and a warning says so once.
        """
        if closure is None:
            self._without_closure()
            return None
        look = torch.enable_grad()(closure)
        loss = None if self._parameters() else look()
        parameters = self._parameters()
        before = [local(parameter).clone() for parameter in parameters]
        self._climb()
        # Closures may leave this to whoever calls them.
        self.zero_grad()
        uphill = look()
        if parameters:
            torch._foreach_copy_([local(parameter) for parameter in parameters], before)
        self.inner.step()
        self.zero_grad()
        return uphill if loss is None else loss

    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """The base optimizer's arithmetic."""
        self.inner.update(group, parameters)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's: nothing of SAM outlives a step."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.inner.load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def _parameters(self) -> list[Tensor]:
        """Those with a gradient."""
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def _climb(self) -> None:
        """From w to w + e, in place."""
        climbs = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            slopes: Any = [p.grad for p in parameters]
            sizes = torch._foreach_abs([p.detach() for p in parameters]) if group["adaptive"] and parameters else None
            slopes = slopes if sizes is None else torch._foreach_mul(slopes, sizes)
            climbs.append((group["rho"], parameters, slopes, sizes))
        norm = get_total_norm([slope for _, _, slopes, _ in climbs for slope in slopes], foreach=True)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        for rho, parameters, slopes, sizes in climbs:
            if parameters:
                slopes = slopes if sizes is None else torch._foreach_mul(slopes, sizes)
                # The constant keeps a gradient of zero from becoming not a number.
                uphill = torch._foreach_mul([local(slope) for slope in slopes], rho / (norm + 1e-12))
                torch._foreach_add_([local(parameter) for parameter in parameters], uphill)

    def _without_closure(self) -> None:
        # A step at rate 0 moves nothing and misses nothing (torch takes one to make an optimizer's state).
        if not self._warned and any(group["lr"] for group in self.param_groups):
            self._warned = True
            base = self.defaults["base"]
            warnings.warn(f"sam was stepped without a closure: these are plain steps of {base}", stacklevel=4)
        self.inner.step()


def _optimizer(name: str, where: str) -> Any:
    """The class of an optimizer that takes one look a step."""
    if catalog.lookup(name, where=where).slot != "optimizer":
        raise RecipeError(
            f"{name} is no optimizer", where=where, fix="`thalweg methods --family optimizers` lists them."
        )
    found = catalog.resolve(name)
    if getattr(found, "second_look", False):
        raise RecipeError(f"{name} takes a second look itself", where=where, fix="Use base=adamw or another.")
    if getattr(found, "partial_backward", False):
        raise RecipeError(f"{name} leaves out parts of the first look", where=where, fix="Use base=muon or another.")
    return found
