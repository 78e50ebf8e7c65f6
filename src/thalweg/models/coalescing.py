"""A transformer of half the width and depth out of a large one, and a large one out of that again.

Width. Channels of one kind are put in groups; a group of the large model is one channel of the small one. For a weight
W [out, in] of the large model and w of the small one, with sums and means over groups,

    coalesce      w = mean over groups of outputs, sum over groups of inputs, of W
    de-coalesce   W = copies of outputs, shares (w / size of the group) of inputs, of w

and vectors (gains, biases) are outputs. Heads are grouped whole, i with i + half of them, so the head size stays, and
so are the residual stream's channels, in blocks of a head's size; inner channels of the feed-forward are grouped i with
i + half. An odd number leaves one alone.
Depth. Layers 2i and 2i + 1 are one layer of the small model: their mean, and its copies.

Coalescing what was de-coalesced gives the small model back. De-coalescing the width keeps the function of the small
model exactly where all groups of the stream are of one size, since the norm of a doubled vector is the doubled norm;
de-coalescing the depth does not.

Source: "A Multi-Level Framework for Accelerating Training Transformer Models" (2024, arXiv:2404.07999).
Where we deviate: with a table for input and output in one, logits over doubled channels would double. The authors halve
the table (as the mapping of GPT-2 in their code does), which also halves the stream that enters the first block, so the
function changes; we halve the gain of the last norm instead, and it stays. Compared with the authors' mapping matrices:
equal on every weight of the blocks, for width and depth.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

State = dict[str, Tensor]

# Kinds of channels of each dimension of a weight, by the module it belongs to; None is not mapped.
_OUT_IN: dict[str, tuple[str | None, str | None]] = {
    "embed_tokens": (None, "+stream"),
    "lm_head": (None, "stream"),
    "q_proj": ("+query", "stream"),
    "k_proj": ("+key", "stream"),
    "v_proj": ("+key", "stream"),
    "o_proj": ("+stream", "query"),
    "gate_proj": ("+inner", "stream"),
    "up_proj": ("+inner", "stream"),
    "down_proj": ("+stream", "inner"),
    "norm": ("+stream", None),
    "input_layernorm": ("+stream", None),
    "post_attention_layernorm": ("+stream", None),
    "q_norm": (None, None),
    "k_norm": (None, None),
}
_LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")


class Grouping:
    """Which channels (or layers) of the large model are one of the small model."""

    def __init__(self, group_of: list[int]) -> None:
        self.group_of = torch.tensor(group_of)
        self.sizes = torch.bincount(self.group_of)

    def sum(self, value: Tensor, dim: int) -> Tensor:
        shape = list(value.shape)
        shape[dim] = len(self.sizes)
        return value.new_zeros(shape).index_add_(dim, self.group_of.to(value.device), value)

    def mean(self, value: Tensor, dim: int) -> Tensor:
        return self.sum(value, dim) / _along(self.sizes, value, dim)

    def copies(self, value: Tensor, dim: int) -> Tensor:
        return value.index_select(dim, self.group_of.to(value.device))

    def shares(self, value: Tensor, dim: int) -> Tensor:
        return self.copies(value / _along(self.sizes, value, dim), dim)


def _along(sizes: Tensor, value: Tensor, dim: int) -> Tensor:
    shape = [1] * value.ndim
    shape[dim] = -1
    return sizes.to(value.device, value.dtype).view(shape)


def paired(count: int, block: int = 1) -> Grouping:
    """Blocks of channels, i with i + half of them (the half rounded up, so that an odd one stays alone)."""
    blocks = count // block
    half = (blocks + 1) // 2
    return Grouping([number % half * block + place for number in range(blocks) for place in range(block)])


def neighbours(count: int) -> Grouping:
    """2i with 2i + 1."""
    return Grouping([number // 2 for number in range(count)])


def alone(count: int) -> Grouping:
    """Each for itself."""
    return Grouping(list(range(count)))


@dataclass(frozen=True)
class Coalescing:
    """The two ways between a large model and a small one.

    Attributes:
        config: the small model's.
        channels: by kind: stream, query, key (and value), inner.
        layers: of the blocks.
        tied: one table for input and output.
    """

    config: Any
    channels: Mapping[str, Grouping]
    layers: Grouping
    tied: bool

    @classmethod
    def of(cls, large: Any, width: bool = True, depth: bool = True) -> Coalescing:
        """Halve the width or the depth, or both, of a Llama-shaped model with this configuration."""
        heads, shared = large.num_attention_heads, large.num_key_value_heads or large.num_attention_heads
        if width and shared not in (1, heads) and (heads % 2 or shared % 2):
            raise ModelError(
                f"{heads} heads on {shared} keys and values cannot be put in pairs",
                where="coalescing",
                fix="Halve the depth only.",
            )
        size = getattr(large, "head_dim", None) or large.hidden_size // heads
        block = size if large.hidden_size % size == 0 else 1
        group = paired if width else lambda count, block=1: alone(count)
        channels = {
            "stream": group(large.hidden_size, block),
            "query": group(heads * size, size),
            "key": group(shared * size, size),
            "inner": group(large.intermediate_size, 1),
        }
        layers = (neighbours if depth else alone)(large.num_hidden_layers)
        counts = {kind: len(grouping.sizes) for kind, grouping in channels.items()}
        config = copy.deepcopy(large)
        config.hidden_size, config.intermediate_size = counts["stream"], counts["inner"]
        config.num_attention_heads, config.num_key_value_heads = counts["query"] // size, counts["key"] // size
        config.head_dim, config.num_hidden_layers = size, len(layers.sizes)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: config.num_hidden_layers]
        return cls(config, channels, layers, bool(large.tie_word_embeddings))

    @torch.no_grad()
    def coalesce(self, state: Mapping[str, Tensor]) -> State:
        """The small model's weights from the large one's, by the names of parameters."""
        return self._mapped(self._across_layers(state, down=True), down=True)

    @torch.no_grad()
    def decoalesce(self, state: Mapping[str, Tensor]) -> State:
        """The large model's weights from the small one's."""
        return self._mapped(self._across_layers(state, down=False), down=False)

    def small(self, model: PreTrainedModel) -> PreTrainedModel:
        """A small model, coalesced from a large one, on the same device and in the same type."""
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng(devices=[]):
            small = AutoModelForCausalLM.from_config(self.config)
        small.to(device=model.device, dtype=model.dtype).train(model.training)
        weights = self.coalesce(dict(model.named_parameters()))
        with torch.no_grad():
            for name, parameter in small.named_parameters():
                parameter.copy_(weights[name])
        found: PreTrainedModel = small
        return found

    def _across_layers(self, state: Mapping[str, Tensor], down: bool) -> State:
        found: State = {}
        stacks: dict[tuple[str, str], dict[int, Tensor]] = {}
        for name, value in state.items():
            match = _LAYER.fullmatch(name)
            if match is None:
                found[name] = value
            else:
                stacks.setdefault((match[1], match[3]), {})[int(match[2])] = value
        for (before, after), layers in stacks.items():
            stack = torch.stack([layers[number] for number in sorted(layers)])
            mapped = self.layers.mean(stack, 0) if down else self.layers.copies(stack, 0)
            found |= {f"{before}{number}{after}": value for number, value in enumerate(mapped.unbind())}
        return found

    def _mapped(self, state: State, down: bool) -> State:
        found = {}
        for name, value in state.items():
            kinds = _OUT_IN.get(name.split(".")[-2])
            if kinds is None:
                raise ModelError(
                    f"there is no rule for the parameter {name}",
                    where="coalescing",
                    fix="Use a model whose parameters are named like Llama's.",
                )
            for dim, kind in enumerate(kinds[: value.ndim]):
                if kind is not None:
                    grouping, is_output = self.channels[kind.lstrip("+")], kind.startswith("+")
                    if down:
                        value = (grouping.mean if is_output else grouping.sum)(value, dim)
                    else:
                        value = (grouping.copies if is_output else grouping.shares)(value, dim)
            if self.tied and name.endswith("model.norm.weight"):
                stream = self.channels["stream"]
                ratio = len(stream.group_of) / len(stream.sizes)
                value = value * (ratio if down else 1.0 / ratio)
            found[name] = value.clone() if value is state[name] else value
        return found
