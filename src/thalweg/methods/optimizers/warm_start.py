"""Shrink and perturb: what to do to trained weights before training goes on with more data.

    w = shrink w + perturb w0            w0: the weights of a freshly initialised model of the same architecture

for every parameter, followed by a new optimizer state and a new warm-up of the rate. Going on from weights as they are
(shrink 1, perturb 0) fits the data but generalises worse than training from nothing (0, 1). Shrinking keeps the
decisions and makes the loss large again, so that old and new examples have gradients of like size; the noise comes from
a fresh model, so that each tensor gets it on the scale of its own initialisation. Buffers (running statistics of
batch normalisation) are the fresh model's.

Source: "On Warm-Starting Neural Network Training" (2019, arXiv:1910.08475); the authors' code has shrink 0.4 and
perturb 0.1, which are the defaults. Compared with that code on a network with batch normalisation: equal bit for bit
with `gains_to_one=False`.
Where we deviate: gains of normalisation layers are shrunk towards one, not towards zero (`gains_to_one=False` is the
authors' rule), since a gain of 0.5 is not nearer to where training began than a gain of 1. A gain is what is all ones
in the fresh model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from thalweg import catalog
from thalweg.errors import ModelError
from thalweg.methods.optimizers.base import working_dtype
from thalweg.methods.optimizers.sharding import local, scattered


@torch.no_grad()
def shrink_and_perturb(
    model: nn.Module, fresh: nn.Module, shrink: float = 0.4, perturb: float = 0.1, gains_to_one: bool = True
) -> None:
    """Shrink and perturb the weights of a model in place; build a new optimizer afterwards.

    Args:
        model: trained; its parameters may be sharded (FSDP2).
        fresh: of the same architecture, freshly initialised, whole on every rank; left as it is.
        shrink: what the trained weights are multiplied with.
        perturb: what the fresh weights are multiplied with.
        gains_to_one: shrink gains of norms towards one; otherwise like all other parameters.

    Raises:
        ModelError: the two models differ in names or shapes.
    """
    source = dict(fresh.named_parameters()) | dict(fresh.named_buffers())
    ours = dict(model.named_parameters()) | dict(model.named_buffers())
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in source.items()}:
        raise ModelError(
            "the fresh model has other parameters than the trained one",
            where="warm_start",
            fix="Build it from the same configuration.",
        )
    for name, parameter in model.named_parameters():
        drawn = scattered(source[name].detach().to(parameter.device, working_dtype(parameter)), parameter)
        weights = local(parameter)
        if gains_to_one and bool((source[name] == 1.0).all()):
            weights.copy_(torch.lerp(drawn, weights.to(drawn.dtype), shrink))
        else:
            weights.copy_(shrink * weights.to(drawn.dtype) + perturb * drawn)
    for name, buffer in model.named_buffers():
        buffer.copy_(source[name])


def fresh_like(model: Any, seed: int) -> nn.Module:
    """A freshly initialised copy of a Hugging Face causal language model, whole and on the CPU.

    Llama-shaped models are drawn as those of the ladder are, others as transformers draws them. The global random
    state is left alone.
    """
    from transformers import AutoModelForCausalLM

    from thalweg.models.initialisation import initialise

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = AutoModelForCausalLM.from_config(model.config)
    if model.config.model_type == "llama":
        initialise(fresh, seed)
    return fresh


class WarmStart:
    """A callback that shrinks and perturbs the weights that a run starts from, before its first step.

    It is for runs that start from weights: a recipe whose model is a folder, or one that extends another run. Their
    optimizer forgets what it has inherited; the schedule's own warm-up warms the rate. Nothing happens on a resume.

    Args:
        shrink: what the trained weights are multiplied with.
        perturb: what freshly drawn weights are multiplied with.
        gains_to_one: shrink gains of norms towards one; otherwise like all other parameters.
    """

    def __init__(self, shrink: float = 0.4, perturb: float = 0.1, gains_to_one: bool = True) -> None:
        options = {"shrink": shrink, "perturb": perturb, "gains_to_one": gains_to_one}
        catalog.lookup("warm_start").check(options, where="warm_start")
        self.shrink, self.perturb, self.gains_to_one = shrink, perturb, gains_to_one

    def setup(self, trainer: Any) -> None:
        """Before the first step of a run."""
        if trainer.clock.step > 0:
            return
        # Not the run's own seed: a fresh model of that seed may be what the weights began as.
        self.apply(trainer.model, fresh_like(trainer.model, trainer.seed + 1))
        trainer.optimizer.state.clear()

    def apply(self, model: nn.Module, fresh: nn.Module) -> None:
        """`shrink_and_perturb` with these options."""
        shrink_and_perturb(model, fresh, self.shrink, self.perturb, self.gains_to_one)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the clock tells whether a run begins."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""
