"""How a fresh model's weights are drawn.

A fixed standard deviation of 0.02 for all matrices is right at one width only: a row of n inputs of unit size
gives an output of size 0.02 * sqrt(n), which is 0.16 at width 64 (signals die) and 1.1 at width 3072. So:

* every matrix is drawn with standard deviation 1 / sqrt(fan_in): unit-size inputs give unit-size outputs at
  every width, which also is the width scaling of muP's hidden weights (arXiv:2203.03466);
* the two matrices that write into the residual stream (attention output, feed-forward down) are further
  divided by sqrt(2 * layers): the stream adds up 2 * layers such contributions, and so stays of unit size at
  every depth (GPT-2);
* embeddings, input and output, are drawn with 0.02: as an output table it makes the first logits small (0.02
  * sqrt(width)), so that the first loss is log(vocab_size) within a few hundredths up to width 256 and 0.2 or
  so at width 1024; the first norm rescales it as input;
* gains of norms start at one, biases at zero.

Draws come from a generator of their own, in the order of the parameters' names as the model lists them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

EMBEDDING_STD = 0.02
_WRITES_TO_STREAM = ("o_proj.weight", "down_proj.weight")


@torch.no_grad()
def initialise(model: LlamaForCausalLM, seed: int) -> None:
    """Draws all weights of a Llama-shaped model anew, in place, reproducibly from the seed alone.

    Args:
        model: as built by transformers, on the CPU; tied tables are drawn once.
        seed: any integer.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        std = _standard_deviation(name, parameter, model.config.num_hidden_layers)
        parameter.normal_(0.0, std, generator=generator)


def _standard_deviation(name: str, parameter: torch.Tensor, layers: int) -> float:
    if "embed_tokens" in name or "lm_head" in name:
        return EMBEDDING_STD
    std = 1.0 / math.sqrt(parameter.shape[1])
    if name.endswith(_WRITES_TO_STREAM):
        std /= math.sqrt(2 * layers)
    return std
