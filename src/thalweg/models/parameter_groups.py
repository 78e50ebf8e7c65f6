"""Which parameters are matrices, embeddings, heads and vectors: the groups that optimizers ask for.

- matrix: weights of hidden linear maps (also GPT-2's Conv1D and stacks of expert matrices). Decayed.
- head: the output head, when it has a weight of its own. Decayed.
- embedding: every embedding table, and a head tied to it. Not decayed: a row is rarely visited, and decay would act
  on it all the time.
- vector: norm gains, biases, filters of convolutions and other small things. Not decayed.

Source: common practice; the kinds are those that Muon distinguishes (see `muon`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.conv import _ConvNd

from thalweg.errors import ModelError

KINDS = ("matrix", "embedding", "head", "vector")
DECAYED = ("matrix", "head")


def parameter_groups(
    model: nn.Module, weight_decay: float = 0.1, lr_scale: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters of a model as groups for any torch optimizer.

    Args:
        model: any Hugging Face causal language model; other modules work too, by the types of their layers.
        weight_decay: for the kinds that are decayed; the others get 0.
        lr_scale: kind -> factor on the learning rate (default 1.0), stored in the group under "lr_scale".
            Thalweg's trainer and schedulers multiply by it; an optimizer alone does not.

    Returns:
        One dict a kind that occurs, with "params", "kind", "weight_decay", "lr_scale". Matrices stored as
        [in, out] instead of [out, in] (Conv1D) come in a group of their own with "transposed": True.

    Raises:
        ModelError: no trainable parameter, or an unknown kind in `lr_scale`.
    """
    scales = dict(lr_scale or {})
    unknown = sorted(set(scales) - set(KINDS))
    if unknown:
        raise ModelError(f"no such kind of parameter: {', '.join(unknown)}", fix=f"Kinds are {', '.join(KINDS)}.")
    members: dict[tuple[str, bool], list[Parameter]] = {}
    for kind, transposed, parameter in _kinds(model):
        members.setdefault((kind, transposed), []).append(parameter)
    if not members:
        raise ModelError(
            "the model has no trainable parameters", fix="Set requires_grad on the parameters to be trained."
        )
    groups = []
    for kind, transposed in sorted(members, key=lambda key: (KINDS.index(key[0]), key[1])):
        decay = weight_decay if kind in DECAYED else 0.0
        group: dict[str, Any] = {"params": members[kind, transposed], "kind": kind, "weight_decay": decay}
        groups.append(group | {"lr_scale": scales.get(kind, 1.0)} | ({"transposed": True} if transposed else {}))
    return groups


def _kinds(model: nn.Module) -> Iterator[tuple[str, bool, Parameter]]:
    """Every trainable parameter once, in the model's order: (kind, stored as [in, out], parameter)."""
    embeddings = {
        id(parameter)
        for module in [*model.modules(), _module(model, "get_input_embeddings")]
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    head = _module(model, "get_output_embeddings")
    heads = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if id(parameter) in embeddings:
                yield "embedding", False, parameter
            elif parameter.ndim < 2 or isinstance(module, _ConvNd):
                yield "vector", False, parameter
            elif id(parameter) in heads:
                yield "head", False, parameter
            else:
                yield "matrix", type(module).__name__ == "Conv1D", parameter


def _module(model: nn.Module, getter: str) -> nn.Module | None:
    """What a Hugging Face model answers, or None for modules that have no such notion."""
    try:
        found = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None
