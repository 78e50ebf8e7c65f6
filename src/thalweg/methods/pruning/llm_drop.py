"""LLM-Drop: leave out the attentions, MLPs or blocks that change the residual stream least.

    block        similarity = mean over tokens of cos(x, block(x))
    attention    similarity = mean over tokens of cos(x, x + a),      x in front of the block
    MLP          similarity = mean over tokens of cos(x', x' + m),    x' = x + a, or x where the two are parallel

measured on the whole model in one pass over the calibration, in float32 [tokens, width], as running sums. The `count`
most similar are dropped at once. `joint` puts all attentions and all MLPs into one list. A half whose output is c x has
similarity 1 whatever c is: what only scales the stream goes unseen.

A dropped half is zero in all matrices and biases, which is exactly the model without it, so that transformers saves and
loads it like any other; `without` takes it out of the model in memory, for speed. Dropped blocks are taken out at once,
and the saved model is smaller.

Source: "What Matters in Transformers? Not All Attention is Needed" (2024, arXiv:2406.15786).
Where we deviate: the norm in front of a dropped half stays where it is (its output meets zeros), since the authors need
a model class of their own to leave it out. Halves that were dropped before take no part in the choice, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg.catalog import lookup
from thalweg.errors import ModelError, RecipeError
from thalweg.models.depth import remove_blocks
from thalweg.models.head import evaluation_mode
from thalweg.models.sublayers import ATTENTION, MLP, Sublayer, is_parallel, stream_of, sublayers_of
from thalweg.models.walker import Block, named_blocks, walk

BLOCK, JOINT = "block", "joint"
KINDS = {ATTENTION: (ATTENTION,), MLP: (MLP,), BLOCK: (BLOCK,), JOINT: (ATTENTION, MLP)}
Scores = dict[str, list[float]]


class LLMDrop:
    """Usable by itself: `LLMDrop(what="attention", count=8).compress(model, calibration)`, then
    `model.save_pretrained(folder)`; or `without(model, found["dropped"])` to run it here, faster.

    Args:
        what: attention, mlp, block, or joint for attention and mlp in one list.
        count: how many; below 1 the share of all that the model has, rounded, at least one.

    Raises:
        RecipeError: an option out of range.
    """

    def __init__(self, what: str = "attention", count: float = 0.25) -> None:
        lookup("llm_drop").check({"what": what, "count": count}, where="llm_drop")
        if count >= 1 and count != int(count):
            raise RecipeError(f"count = {count} is no number of layers", where="llm_drop", fix="Give 8, or 0.25.")
        self.what, self.count = what, count

    def compress(self, model: Any, calibration: Tensor | None = None) -> dict[str, Any]:
        """Drop from a causal language model in place.

        Args:
            model: any transformers causal language model.
            calibration: int64 [windows, T].

        Returns:
            similarities by kind, a number a block; dropped, a list of kind, block (its place before), similarity and
            parameters; parameters_dropped; parameters, of the whole model before.

        Raises:
            ModelError: no calibration, blocks that cannot be taken apart, or fewer candidates than are to be dropped.
        """
        if calibration is None:
            raise ModelError("LLMDrop needs calibration inputs.", where="compress", fix="Give windows [n, T] of text.")
        parameters = sum(value.numel() for value in model.parameters())
        scores = similarities(model, calibration, halves=self.what != BLOCK)
        chosen = choose(scores, KINDS[self.what], self.count, gone=_gone(model, KINDS[self.what]))
        dropped = [
            {
                "kind": kind,
                "block": index,
                "similarity": scores[kind][index],
                "parameters": _parameters(model, kind, index),
            }
            for kind, index in chosen
        ]
        drop(model, dropped)
        return {
            "similarities": scores,
            "dropped": dropped,
            "parameters_dropped": sum(one["parameters"] for one in dropped),
            "parameters": parameters,
        }


# -- measuring and choosing -------------------------------------------------------------------------------------------


@dataclass
class MeanCosine:
    """Mean over tokens of the cosine between rows [..., width]; 1 for rows that are the same, zeros among them."""

    total: float = 0.0
    tokens: int = 0

    def see(self, before: Tensor, after: Tensor) -> None:
        before, after = before.float(), after.float()
        cosines = functional.cosine_similarity(before, after, dim=-1, eps=1e-30)
        # By rounding the cosine of a row with itself need not be 1.
        cosines = torch.where((before == after).all(-1), torch.ones_like(cosines), cosines)
        self.total += float(cosines.sum(dtype=torch.float64))
        self.tokens += cosines.numel()

    @property
    def value(self) -> float:
        return self.total / self.tokens


def similarities(model: nn.Module, calibration: Tensor, halves: bool = True) -> Scores:
    """Similarity of what goes into and comes out of every block, and of its halves; the model is left as it is.

    Args:
        model: any transformers causal language model.
        calibration: int64 [windows, T].
        halves: of attention and MLP too, which needs blocks that add them to the stream.

    Returns:
        {"attention": [blocks], "mlp": [blocks], "block": [blocks]}.
    """
    found: Scores = {kind: [] for kind in ((ATTENTION, MLP, BLOCK) if halves else (BLOCK,))}
    for block in walk(model, calibration):
        for kind, value in _of_block(block, halves).items():
            found[kind].append(value)
    return found


def _of_block(block: Block, halves: bool) -> dict[str, float]:
    parts = sublayers_of(block.module, block.name) if halves else None
    parallel = parts is not None and is_parallel(block, parts)
    means = {kind: MeanCosine() for kind in ((ATTENTION, MLP, BLOCK) if halves else (BLOCK,))}
    with torch.no_grad(), evaluation_mode(block.module):
        for hidden in block.batches():
            if parts is None:
                means[BLOCK].see(hidden, block.run(hidden))
                continue
            stream = stream_of(block, parts, hidden)
            # Sums in float32: in bfloat16 what a half adds could be lost in the stream.
            before, attention, mlp = stream.before.float(), stream.attention.float(), stream.mlp.float()
            between = before if parallel else before + attention
            means[BLOCK].see(before, stream.after)
            means[ATTENTION].see(before, before + attention)
            means[MLP].see(between, between + mlp)
    return {kind: mean.value for kind, mean in means.items()}


def number_of(count: float, candidates: int) -> int:
    """How many of so many the option `count` means."""
    return int(count) if count >= 1 or not count else max(1, round(count * candidates))


def choose(
    scores: Scores, kinds: Sequence[str], count: float, gone: frozenset[tuple[str, int]] = frozenset()
) -> list[tuple[str, int]]:
    """The most similar (kind, block), most similar first.

    Args:
        scores: similarities by kind.
        kinds: that are put into one list.
        count: how many; below 1 a share of all.
        gone: those that cannot be chosen.

    Raises:
        ModelError: there are not so many.
    """
    listed = [(kind, index) for kind in kinds for index in range(len(scores[kind]))]
    number = number_of(count, len(listed))
    left = [one for one in listed if one not in gone]
    most = len(left) - 1 if BLOCK in kinds else len(left)
    if number > most:
        raise ModelError(
            f"{number} of {' and '.join(kinds)} cannot be dropped: there are {len(left)} left.",
            where="llm_drop",
            fix=f"Give count={most} at most.",
        )
    return sorted(left, key=lambda one: -scores[one[0]][one[1]])[:number]


# -- dropping ---------------------------------------------------------------------------------------------------------


def drop(model: Any, dropped: Sequence[Mapping[str, Any]]) -> None:
    """Make halves zero and take blocks out, in place. Each entry has `kind` and `block`, its place in the model."""
    blocks = named_blocks(model)
    for one in dropped:
        if one["kind"] != BLOCK:
            name, block = blocks[one["block"]]
            for linear in _half(name, block, one["kind"]).linears:
                linear.prune(torch.zeros_like(linear.weight, dtype=torch.bool))
                if linear.bias is not None:
                    linear.bias.detach().zero_()
                linear.fixed.notes.append(f"dropped with the {one['kind']} of {name}")
    remove_blocks(model, {one["block"] for one in dropped if one["kind"] == BLOCK})


def without(model: Any, dropped: Sequence[Mapping[str, Any]]) -> Any:
    """Take halves out of a model in place, for speed; the same numbers as with them at zero.

    The last thing to do to a model, once and for all halves: save it before, since their weights are not there any
    more.

    Args:
        model: a transformers causal language model in which they are zero (or not, then they are left out by this).
        dropped: entries with `kind` and `block`; blocks among them are gone already and passed over.

    Returns:
        The model.
    """
    blocks = named_blocks(model)
    places = [(blocks[one["block"]], one["kind"]) for one in dropped if one["kind"] != BLOCK]
    halves = [(block, _half(name, block, kind)) for (name, block), kind in places]
    answers = _answers(model, [module for _, half in halves for module in half.modules.values()])
    for block, half in halves:
        for name, module in half.modules.items():
            width, length = answers[module]
            # Of linear layers in a row only the last one's width is seen outside.
            width = width if module is half.exit else 1
            setattr(block, name, Nothing(width, length, getattr(module, "layer_idx", None)))
    return model


class Nothing(nn.Module):
    """Stands where a module was and gives zeros.

    Args:
        width: of its output.
        length: of the tuple that the module gave, the output first; 0 where it gave a tensor.
        layer_idx: of an attention in the cache. Models read the number of tokens so far from one of the cache's
            layers, so it is kept up: a zero a token, in place of keys and values.
    """

    def __init__(self, width: int, length: int, layer_idx: int | None) -> None:
        super().__init__()
        self.width, self.length, self.layer_idx = width, length, layer_idx

    def forward(self, *arguments: Any, **named: Any) -> Any:
        hidden = arguments[0] if arguments else named["hidden_states"]
        zeros = hidden.new_zeros(*hidden.shape[:-1], self.width)
        cache = named.get("past_key_values", named.get("layer_past"))
        if cache is not None and self.layer_idx is not None:
            place = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
            cache.update(place, place, self.layer_idx)
        return (zeros, *[None] * (self.length - 1)) if self.length else zeros


def _answers(model: Any, modules: Sequence[nn.Module]) -> dict[nn.Module, tuple[int, int]]:
    """(width of the output, length of the tuple it is in or 0) of each module, by a run of the model on one token."""
    found: dict[nn.Module, tuple[int, int]] = {}

    def hook(module: nn.Module, arguments: tuple, output: Any) -> None:
        first, length = (output[0], len(output)) if isinstance(output, tuple) else (output, 0)
        found[module] = (first.shape[-1], length)

    hooks = [module.register_forward_hook(hook) for module in modules]
    try:
        with torch.no_grad(), evaluation_mode(model):
            token = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
            model(input_ids=token, use_cache=False)
    finally:
        for one in hooks:
            one.remove()
    return found


def _half(name: str, block: nn.Module, kind: str) -> Sublayer:
    return next(half for half in sublayers_of(block, name) if half.kind == kind)


def _gone(model: nn.Module, kinds: Sequence[str]) -> frozenset[tuple[str, int]]:
    if BLOCK in kinds:
        return frozenset()
    return frozenset(
        (half.kind, index)
        for index, (name, block) in enumerate(named_blocks(model))
        for half in sublayers_of(block, name)
        if half.gone
    )


def _parameters(model: nn.Module, kind: str, index: int) -> int:
    name, block = named_blocks(model)[index]
    if kind == BLOCK:
        return sum(value.numel() for value in block.parameters())
    return _half(name, block, kind).parameters
