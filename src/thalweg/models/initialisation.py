"""How a fresh model's weights are drawn, and how somebody else's were.

A fixed standard deviation of 0.02 for all matrices is right at one width only: a row of n inputs of unit size
gives an output of size 0.02 * sqrt(n), which is 0.16 at width 64 (signals die) and 1.1 at width 3072. So:

* every matrix is drawn with standard deviation 1 / sqrt(fan_in): unit-size inputs give unit-size outputs at
  every width, which also is the width scaling of muP's hidden weights (arXiv:2203.03466);
* the two matrices that write into the residual stream (attention output, feed-forward down) are further
  divided by sqrt(2 * layers): the stream adds up 2 * layers such contributions, and so stays of unit size at
  every depth (GPT-2);
* a tied table (input and output in one) gets 1 / sqrt(width) as well: as output it makes logits of unit size,
  so the first loss is log(vocab_size) + 0.5;
* separate tables get what each use wants: 1 for the input, which makes the stream of unit size from the
  start, and 0.2 / sqrt(width) for the output, so the first loss is log(vocab_size) within 0.02;
* gains of norms start at one, biases at zero.

The usual 0.02 for embeddings is too small at our widths and costs most where budgets are short: a 0.5M model
after 120 steps of AdamW (8 x 128 tokens, vocabulary 4096, standard library source, peak rate 6e-3, one seed)
had a training loss of 6.30 with a tied table of 0.02, 6.10 with 0.05, 5.77 with 0.1 (= 1 / sqrt(width)), 5.72
with 0.2; with separate tables, output 0.02, 6.18 with an input of 0.1 and 5.66 with 1.

Draws come from a generator of their own, in the order of the parameters' names as the model lists them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch.nn import Parameter

from thalweg.errors import ModelError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel

_WRITES_TO_STREAM = ("o_proj.weight", "down_proj.weight")


@torch.no_grad()
def initialise(model: LlamaForCausalLM, seed: int) -> None:
    """Draws all weights of a Llama-shaped model anew, in place, reproducibly from the seed alone.

    Args:
        model: as built by transformers, on the CPU; tied tables are drawn once.
        seed: any integer.
    """
    config, generator = model.config, torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        std = _standard_deviation(name, parameter.shape[1], config.num_hidden_layers, config.tie_word_embeddings)
        parameter.normal_(0.0, std, generator=generator)


def _standard_deviation(name: str, fan_in: int, layers: int, tied: bool) -> float:
    if "embed_tokens" in name:
        return 1.0 / math.sqrt(fan_in) if tied else 1.0
    if "lm_head" in name:
        return 0.2 / math.sqrt(fan_in)
    depth = 2 * layers if name.endswith(_WRITES_TO_STREAM) else 1
    return 1.0 / math.sqrt(fan_in * depth)


# How far the size of weights may be from what a convention says; a matrix of 256 numbers is off by 5%, one in a while.
_RECOGNISED = 1.1


@torch.no_grad()
def convention(model: PreTrainedModel, matrices: Iterable[tuple[Parameter, bool]]) -> tuple[bool, bool]:
    """How a fresh model's hidden matrices were drawn, measured by their size.

    Args:
        model: its config says `initializer_range`, the fixed standard deviation of transformers' models.
        matrices: hidden matrices [out, in], each with whether it writes into the residual stream.

    Returns:
        (as 1 / sqrt(fan-in) and not as a fixed standard deviation, those that write divided by sqrt(2 * layers)).

    Raises:
        ModelError: neither: the model was trained, or its weights were scaled before.
    """
    both = list(matrices)
    fixed = getattr(model.config, "initializer_range", None) or math.nan
    plain, writing = ([parameter for parameter, writes in both if writes is wanted] for wanted in (False, True))
    by_fan_in = _nearer(
        _relative_size(plain, [parameter.shape[1] ** -0.5 for parameter in plain]),
        _relative_size(plain, [fixed] * len(plain)),
    )
    sizes = [parameter.shape[1] ** -0.5 if by_fan_in else fixed for parameter in writing]
    depth = math.sqrt(2 * model.config.num_hidden_layers)
    by_depth = _nearer(_relative_size(writing, [size / depth for size in sizes]), _relative_size(writing, sizes))
    return by_fan_in, by_depth


def not_fresh(why: str) -> ModelError:
    """The error for a model that was trained, where one with its initial weights is wanted."""
    return ModelError(
        f"these are not the weights of a fresh model: {why}",
        where="mup",
        fix="A model that was trained, or whose weights were scaled before, has no initial sizes to set: leave it out.",
    )


def _relative_size(parameters: list[Parameter], expected: list[float]) -> float:
    """Root mean square of all entries, each in units of what is expected."""
    squares = [float(p.square().sum()) / size**2 for p, size in zip(parameters, expected, strict=True)]
    return math.sqrt(sum(squares) / sum(parameter.numel() for parameter in parameters))


def _nearer(one: float, other: float) -> bool:
    """Whether the first of two relative sizes is the one that is about 1."""
    distances = [abs(math.log(size)) if size > 0.0 else math.inf for size in (one, other)]
    if not min(distances) < math.log(_RECOGNISED):
        raise not_fresh("matrices have neither a fixed standard deviation nor 1 / sqrt(fan-in)")
    return not distances[1] < distances[0]
