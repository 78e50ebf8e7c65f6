"""muP and depth-muP: initial sizes and learning rates under which the best rate is the same at every width and depth.

With m = width / base width (feed-forward size over the base's where that is the fan-in), d = layers / base layers and
alpha the depth exponent, every parameter moves what comes after it by as much as in the base. For Adam, relative to it:

                              initial size      learning rate      weight decay     eps
    embedding                 1                 1                  1                1 / m
    hidden matrix             m^-1/2            d^(alpha-1) / m    m                d^-alpha / m
    bias, gain in a block     -                 d^(alpha-1)        -                d^-alpha / m
    final gain                -                 1                  -                1 / m
    output table              1                 1                  1                1 / m
    residual branches         x + d^-alpha F(x)
    logits                    h W^T / m
    attention logits          q.k sqrt(base head size) / head size

Rates of other optimizers: see `RULES`.

The multipliers of the last three rows are not computed but folded into a weight beside them, a w in place of a times w:
1 / m into the final gain, d^-alpha into the output and down projections, the attention's into the query projection (or
the query norm's gain, where there is one). An optimizer that does not ask for the size of its gradients then needs a
times the rate and eps / a, and computes the same function at every step. So the model stays what it is: an ordinary
checkpoint, no operation more, tied tables too.

Initial sizes are recognised: a fixed standard deviation (transformers' `initializer_range`) or 1 / sqrt(fan-in) with
depth-scaled residual branches (`models.initialisation`). They become what the same convention gives at the base, times
the table. No random number is drawn.

Sources: "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer" (2022,
arXiv:2203.03466); depth and eps: "Don't be lazy: CompleteP enables compute-efficient deep transformers" (2025,
arXiv:2505.01618, alpha = 1) and its code; alpha = 0.5 is depth-muP as in "Super Consistency of Neural Network
Landscapes and Learning Rate Transfer" (2024, arXiv:2402.17457). Where we deviate: multipliers are folded, as said, so
clipping by the norm of all gradients sees the folded weights' (the final gain's is m times larger); the rules for Muon,
and SGD's rates at alpha other than 0.5, are our derivation. Read-out and queries do not start at zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from thalweg import catalog
from thalweg.errors import ModelError, RecipeError
from thalweg.models.blocks import decoder_blocks
from thalweg.models.initialisation import convention, not_fresh
from thalweg.models.parameter_groups import parameter_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Group = dict[str, Any]


class Rule(NamedTuple):
    """How an optimizer's rates answer to shapes.

    fan_out, fan_in: the rate of a hidden matrix goes as fan_out^this / fan_in^that.
    width: the rate of all else goes as width^this.
    gradient: power of a gradient's size in the update, plus one: a folded factor multiplies the rate so often.
    """

    fan_out: float
    fan_in: float
    width: float
    gradient: int


RULES = {
    "adam": Rule(0.0, 1.0, 0.0, 1),
    # Updates of the same RMS at every size but of full rank (Muon with scale kimi), and of the same spectral norm.
    "muon": Rule(0.0, 0.5, 0.0, 1),
    "spectral": Rule(0.0, 0.0, 0.0, 1),
    "sgd": Rule(1.0, 1.0, 1.0, 2),
}
WRITERS = ("o_proj", "down_proj")
WIDENERS = ("gate_proj", "up_proj")
NEEDED = {"q_proj", *WRITERS}


class Ratios(NamedTuple):
    """A model's shape over the base's: width, feed-forward size, layers; and base head size over head size."""

    width: float
    feed_forward: float
    depth: float
    head: float


@dataclass(frozen=True)
class Place:
    """What a parameter is to the parameterisation: its kind (table, tied, head, hidden, vector, final), the ratios of
    fan-in and fan-out to the base's, whether it writes into the residual stream, the factor that is folded into it."""

    kind: str
    in_block: bool = False
    fan_in: float = 1.0
    fan_out: float = 1.0
    writes: bool = False
    folded: float = 1.0


class Mup:
    """Parameterises a fresh model of Llama's shape: `install` scales its weights, `groups` its rates.

    With the trainer (`--arm adamw+mup`) the peak rate is the one for `base_width`, whatever the model's width. In a
    loop of one's own, `parameterise` does both and gives groups for any optimizer.

    Args:
        base_width: width at which the rate was tuned.
        base_layers: layers of the base; 0 means as many as the model has: depth is not scaled.
        base_feed_forward: feed-forward size of the base; 0 means in the model's proportion to the width.
        base_head_size: dimensions of a head of the base; 0 means as in the model.
        depth_exponent: alpha, 0.5 (depth-muP) to 1 (CompleteP).
        output_multiplier: times the logits at every width; a constant to tune at the base.
        rule: one of `RULES`: adam (anything that divides gradients by their size), muon, spectral or sgd.
    """

    def __init__(
        self,
        base_width: int = 128,
        base_layers: int = 0,
        base_feed_forward: int = 0,
        base_head_size: int = 32,
        depth_exponent: float = 1.0,
        output_multiplier: float = 1.0,
        rule: str = "adam",
    ) -> None:
        self.options: dict[str, Any] = {
            "base_width": base_width,
            "base_layers": base_layers,
            "base_feed_forward": base_feed_forward,
            "base_head_size": base_head_size,
            "depth_exponent": depth_exponent,
            "output_multiplier": output_multiplier,
            "rule": rule,
        }
        catalog.lookup("mup").check(self.options, where="mup")
        if output_multiplier <= 0.0:
            raise RecipeError("output_multiplier = 0 would leave no logits", where="mup", fix="Give a number above 0.")
        self.depth_exponent, self.output_multiplier, self.rule = depth_exponent, output_multiplier, RULES[rule]

    @staticmethod
    def rule_of(width_exponent: float) -> str:
        """The rule for an optimizer whose rates of hidden matrices fall as width^-width_exponent."""
        known = [name for name, rule in RULES.items() if rule.gradient == 1]
        return min(known, key=lambda name: abs(RULES[name].fan_in - width_exponent))

    @torch.no_grad()
    def install(self, model: PreTrainedModel) -> PreTrainedModel:
        """Scale the weights of a fresh model, in place.

        Raises:
            ModelError: a model of another shape, or one whose weights are not those of a fresh one.
        """
        places = list(self._places(model))
        if not any((parameter == 1).all() for parameter, place in places if place.kind == "final"):
            raise not_fresh("the gains of the final norm are not 1")
        hidden = [(parameter, place.writes) for parameter, place in places if place.kind == "hidden"]
        by_fan_in, by_depth = convention(model, hidden)
        ratios = self._ratios(model)
        for parameter, place in places:
            factor = place.folded
            if place.kind == "hidden" and not by_fan_in:
                factor /= math.sqrt(place.fan_in)
            if place.writes and by_depth:
                factor *= math.sqrt(ratios.depth)
            # These tables were drawn smaller for this width than for the base's, where muP wants the same size.
            if place.kind in ("tied", "head") and by_fan_in:
                factor *= math.sqrt(ratios.width)
            if factor != 1.0:
                parameter.mul_(factor)
        return model

    def groups(self, model: PreTrainedModel, groups: list[Group]) -> list[Group]:
        """The same parameters in finer groups: `lr_scale` and `weight_decay` multiplied, `eps_scale` for their eps."""
        ratios = self._ratios(model)
        factors = {id(parameter): self._factors(place, ratios) for parameter, place in self._places(model)}
        finer: list[Group] = []
        for group in groups:
            parts: dict[tuple[float, float, float], list[Tensor]] = {}
            for parameter in group["params"]:
                # What other parts have added beside the model stays as it is.
                parts.setdefault(factors.get(id(parameter), (1.0, 1.0, 1.0)), []).append(parameter)
            for (lr, weight_decay, eps), parameters in parts.items():
                scaled = {"lr_scale": group.get("lr_scale", 1.0) * lr, "eps_scale": eps}
                decay = {"weight_decay": group["weight_decay"] * weight_decay} if "weight_decay" in group else {}
                finer.append({**group, "params": parameters, **scaled, **decay})
        return finer

    def setup(self, trainer: Any) -> None:
        """Check the rule against the optimizer, and scale its eps."""
        if getattr(trainer, "recipe", None) is not None:
            optimizer = trainer.recipe.optimizer.name
            usual = catalog.lookup(optimizer).defaults["width_exponent"]
            if self.options["rule"] == "adam" and usual != self.rule.fan_in:
                raise RecipeError(
                    f"mup's rule adam lets rates of hidden matrices fall as width^-1, but {optimizer}'s fall as "
                    f"width^-{usual:g}",
                    where="mup:rule",
                    fix=f"Say which rule: mup:rule={self.rule_of(usual)}.",
                )
        for group in trainer.optimizer.param_groups:
            if "eps" in group and "eps_scale" in group:
                group["eps"] = trainer.optimizer.defaults["eps"] * group["eps_scale"]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what it did is in the weights and in the optimizer's groups."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""

    def _ratios(self, model: PreTrainedModel) -> Ratios:
        config, layers = model.config, len(decoder_blocks(model))
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = config.hidden_size / self.options["base_width"]
        return Ratios(
            width,
            config.intermediate_size / (self.options["base_feed_forward"] or config.intermediate_size / width),
            layers / (self.options["base_layers"] or layers),
            (self.options["base_head_size"] or head_size) / head_size,
        )

    def _places(self, model: PreTrainedModel) -> Iterator[tuple[Parameter, Place]]:
        """Every parameter once, with its place."""
        _check_shape(model)
        ratios = self._ratios(model)
        tables = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
        heads = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
        inside: set[int] = set()
        for block in decoder_blocks(model):
            names = dict(block.named_parameters())
            query = "q_norm" if any("q_norm." in name for name in names) else "q_proj"
            for name, parameter in names.items():
                inside.add(id(parameter))
                yield parameter, self._in_block(name.split(".")[-2], query, parameter, ratios)
        for parameter in model.parameters():
            if id(parameter) in tables:
                yield parameter, Place("tied" if id(parameter) in heads else "table")
            elif id(parameter) in heads:
                yield parameter, Place("head")
            elif id(parameter) not in inside:
                yield parameter, Place("final", folded=self.output_multiplier / ratios.width)

    def _in_block(self, module: str, query: str, parameter: Tensor, ratios: Ratios) -> Place:
        writes = module in WRITERS
        folded = ratios.depth**-self.depth_exponent if writes else math.sqrt(ratios.head) if module == query else 1.0
        return Place(
            kind="hidden" if parameter.ndim >= 2 else "vector",
            in_block=True,
            fan_in=ratios.feed_forward if module == "down_proj" else ratios.width,
            fan_out=ratios.feed_forward if module in WIDENERS else ratios.width,
            writes=writes,
            folded=folded,
        )

    def _factors(self, place: Place, ratios: Ratios) -> tuple[float, float, float]:
        """(learning rate, weight decay, eps) of a parameter over the base's."""
        rule, width, depth = self.rule, ratios.width, ratios.depth
        deep = depth ** (rule.gradient * self.depth_exponent - 1.0) if place.in_block else 1.0
        hidden = place.fan_out**rule.fan_out / place.fan_in**rule.fan_in
        rate = (hidden if place.kind == "hidden" else width**rule.width) * deep * place.folded**rule.gradient
        # lr wd stays what it is, but for depth. Gradients shrink as 1 / m, and more in a deep model's branches.
        eps = (depth**-self.depth_exponent if place.in_block else 1.0) / width / place.folded
        return rate, deep / rate, eps


def parameterise(
    model: PreTrainedModel, lr: float, weight_decay: float = 0.1, eps: float = 1e-8, **options: Any
) -> list[Group]:
    """muP for a loop of one's own: scales a fresh model in place and gives groups for any torch optimizer.

    The groups hold absolute rates, so a scheduler that multiplies them serves, and one that sets them does not.

    Args:
        lr, weight_decay, eps: as tuned at the base; options: those of `Mup`.
    """
    method = Mup(**options)
    finer = method.groups(method.install(model), parameter_groups(model, weight_decay))
    for group in finer:
        group |= {"lr": lr * group.pop("lr_scale"), "eps": eps * group.pop("eps_scale")}
    return finer


def _check_shape(model: PreTrainedModel) -> None:
    blocks = decoder_blocks(model)
    missing = {name for block in blocks for name in NEEDED - {part.split(".")[-1] for part, _ in block.named_modules()}}
    config = model.config
    told = all(hasattr(config, name) for name in ("hidden_size", "intermediate_size", "num_attention_heads"))
    if not blocks or missing or not told or model.get_output_embeddings() is None:
        lacks = f"it has no {sorted(missing)[0]}" if missing else "its parts have other names"
        raise ModelError(
            f"{type(model).__name__} is not of Llama's shape: {lacks}",
            where="mup",
            fix="Models such as Llama, Mistral, Qwen2 and Qwen3 are, and those of the ladder.",
        )
