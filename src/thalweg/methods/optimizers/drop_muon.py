"""Drop-Muon: Muon for the layers behind a random cut; the way back ends there, so the layers before it cost nothing.

The model is a chain of layers 0 .. b - 1 from the input to the output. Every step a first layer s is drawn, and

    i >= s    M_i = beta M_i + (1 - beta) G_i        W_i = Muon's step (see `muon`), AdamW for vectors and tables
    i < s     M_i, W_i as they are: no momentum, no decay, no gradient

    Prob(s = i) proportional to exp(shift ((1 - p) (b - 1 - i) + p i)),    p = share of the training that is done

so with shift 0, the source's, all s are equally likely: layer i moves with probability (i + 1) / b, the last always,
and (b + 1) / 2 layers on average. What moves is not scaled up for having moved rarely.

The saving: before the forward pass `draw` switches `requires_grad` off for the layers before s. Autograd then builds
no graph for them, stores no activations, and stops at layer s. The forward pass always costs all of it.

Which layers: the input's tables, each decoder block, and what follows (norm and head). A table that serves as both
input and head counts as the last layer. Its gradient through the input would need the whole way back, so it is cut
off unless s is the first layer: what the table gets otherwise is the gradient of its work as head alone.

The draw is a function of (seed, number of draws before); that number is in the groups, hence in `state_dict`.

Source: "Drop-Muon: Update Less, Converge Faster" (Gruntkowska, Maziane, Qu, Richtarik, 2025, arXiv:2510.02239), its
randomised progressive training with uniform sampling. Its theory writes the step as -gamma M^#, with the nuclear norm
of M in M^#; Muon's step of a fixed length is its other, equivalent form with gamma ||M||_* for the length, and the one
used here. Where we deviate: tied tables (above), AdamW for all but hidden matrices, Muon's Nesterov momentum. A shift
above 0 (early steps favour the whole network, late ones the last layers) follows a re-implementation of the source's
epoch shift by others; we could not check it against the paper.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from thalweg.errors import ModelError, RecipeError
from thalweg.methods.optimizers.adamw_update import adamw_state, adamw_update
from thalweg.methods.optimizers.base import NARROW, Base, Group
from thalweg.methods.optimizers.muon_update import muon_update
from thalweg.models.blocks import decoder_blocks

DRAWS = "draws"


class DropMuon(Base):
    """Muon that leaves the layers before a random one as they are.

    In a loop of one's own: `follow(model)` once, `draw()` before every step's first forward pass. Where `draw` is not
    called, `step` draws: the same walk, without the saving. Without `follow` there is one layer, and this is Muon.
    Under DistributedDataParallel set `find_unused_parameters=True`; torch.compile the blocks rather than the model,
    which would be compiled anew for every cut.

    Args:
        params: parameters or groups, as for Muon.
        lr: learning rate for both parts.
        weight_decay: decoupled, multiplied by the learning rate.
        shift: 0 draws the cut uniformly; above 0 it moves from the input to the output during training.
        momentum, nesterov, ns_steps, scale, dtype: Muon's.
        beta1: AdamW part, memory of the first moment.
        beta2: AdamW part, memory of the second moment.
        eps: AdamW part, added to the root of the second moment.

    Raises:
        RecipeError: an option out of range, or a matrix group with a vector in it.
    """

    card = "drop_muon"
    # Tells the trainer that some parameters get no gradient in some steps.
    partial_backward = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        *,
        shift: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        scale: str = "kimi",
        dtype: str = "auto",
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay,
            shift=shift,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            scale=scale,
            dtype=dtype,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
        )
        self.param_groups[0][DRAWS] = 0
        self._chain: list[list[nn.Parameter]] = []
        self._seed = 0
        self._input: nn.Module | None = None
        self._idle: set[int] = set()
        self._frozen: list[nn.Parameter] = []
        self._cut: Any = None
        self._drawn = False

    # -- the chain and the draw -----------------------------------------------------------------------------------

    def follow(self, model: nn.Module | Sequence[nn.Module], seed: int = 0) -> None:
        """Learn the chain of layers, and the seed of the draws.

        Args:
            model: a language model with decoder blocks, or modules in the order in which they are run.
            seed: two runs with one seed draw the same cuts.

        Raises:
            ModelError: a model without decoder blocks.
        """
        self._seed, self._input = seed, None
        if isinstance(model, nn.Module) and not isinstance(model, nn.Sequential):
            self._chain = chain_of(model)
            getter = getattr(model, "get_input_embeddings", None)
            self._input = getter() if getter is not None else None
        else:
            self._chain = [layer for module in model if (layer := list(module.parameters()))]

    def draw(self, progress: float = 0.0) -> int:
        """Choose the first layer that moves in the coming step, and stop autograd before it; returns its index.

        Args:
            progress: share of the training that is done, for a shift above 0.
        """
        if not self._chain:
            raise RecipeError("there is no chain to draw from", where=self.where, fix="Call follow(model) before draw.")
        self._release()
        first_group = self.param_groups[0]
        chances = chances_of(len(self._chain), first_group["shift"], progress)
        dice = random.Random(f"{self.card} {self._seed} {first_group[DRAWS]}")
        first: int = dice.choices(range(len(self._chain)), chances)[0]
        first_group[DRAWS] += 1
        before = [parameter for layer in self._chain[:first] for parameter in layer]
        self._idle = {id(parameter) for parameter in before}
        self._frozen = [parameter for parameter in before if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        if first > 0 and self._input is not None:
            # For a table that is the head, too: it wants a gradient, but not this one.
            self._cut = self._input.register_forward_hook(lambda module, args, output: output.detach())
        self._drawn = True
        return first

    def _release(self) -> None:
        """Undo what a draw has done to the model."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        if self._cut is not None:
            self._cut.remove()
        self._frozen, self._cut, self._idle, self._drawn = [], None, set(), False

    # -- the step -------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of the layers that were drawn; afterwards all layers want gradients again."""
        if self._chain and not self._drawn:
            self.draw()
        try:
            return super().step(closure)
        finally:
            self._release()

    def update(self, group: Group, parameters: list[Tensor]) -> None:
        """Muon's step for the hidden matrices, AdamW's for the others, of the layers that move."""
        self._prepare(group, [p for p in group["params"] if id(p) in self._idle and p not in self.state])
        moving = [parameter for parameter in parameters if id(parameter) not in self._idle]
        matrices, others = self.split(group, moving)
        if matrices:
            muon_update(self, group, matrices)
        adamw_update(self, group, others)

    def _prepare(self, group: Group, parameters: list[Tensor]) -> None:
        """State for layers that have never moved: checkpoints under FSDP2 want it of all parameters or of none."""
        self._refresh_masters([parameter for parameter in parameters if parameter.dtype in NARROW])
        matrices, others = self.split(group, parameters)
        self.buffers(matrices, "momentum_buffer")
        adamw_state(self, group, others)

    # -- hooks of the trainer -------------------------------------------------------------------------------------

    def setup(self, trainer: Any) -> None:
        """The chain is the trainer's model, the seed the run's."""
        self.follow(trainer.model, trainer.seed)

    def batch(self, trainer: Any, batch: Any) -> None:
        """Before the forward pass of a step."""
        self.draw(trainer.clock.progress)

    def skipped(self, trainer: Any) -> None:
        """A step that is not taken."""
        self._release()


def chances_of(layers: int, shift: float, progress: float) -> list[float]:
    """Prob(s = i) for every layer i of a chain."""
    exponents = [shift * ((1.0 - progress) * (layers - 1 - i) + progress * i) for i in range(layers)]
    weights = [math.exp(exponent - max(exponents)) for exponent in exponents]
    return [weight / sum(weights) for weight in weights]


def chain_of(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of a language model by layers, from the input to the output.

    A layer is a decoder block; what stands before the first block in the model's order makes one more, and what
    follows the blocks, with all of the head, the last.
    """
    blocks = decoder_blocks(model)
    if not blocks:
        raise ModelError(
            "no decoder blocks were found in the model",
            where="optimizer drop_muon",
            fix="Pass its layers to follow as a list, in the order in which they are run.",
        )
    places = {id(parameter): index for index, block in enumerate(blocks, 1) for parameter in block.parameters()}
    last = len(blocks) + 1
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter is not None else None
    if head is not None:
        places |= {id(parameter): last for parameter in head.parameters()}
    chain: list[list[nn.Parameter]] = [[] for _ in range(last + 1)]
    place, seen = 0, set()
    for module in model.modules():
        if module is blocks[0]:
            place = last
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                chain[places.get(id(parameter), place)].append(parameter)
    return [layer for layer in chain if layer]
