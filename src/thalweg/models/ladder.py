"""The ladder: Llama-shaped models from 0.2M to 3B parameters, and how to build one.

A budget decides the size of a model, so sizes are rungs of one ladder and everything else follows from the
rung. "Parameters" here always means *non-embedding* parameters (blocks and the final norm): at small sizes
the embedding table outweighs the blocks and says more about the tokenizer than about the model; this is the N
of the laws room.

How the shapes were chosen, once for all rungs:

* Width over depth grows from about 16-32 at the bottom to about 64 at 100M and about 100 at 3B. Loss is flat
  in this ratio over a wide range (Kaplan et al. 2020, arXiv:2001.08361, figure 5), time is not: a wide
  shallow model is faster, and below five layers or so too little is left to compose. Growth with size is the
  habit of released models.
* Head size 32 below width 256, 64 below width 1024, 128 above: several heads at every size, then the sizes
  that attention kernels like.
* SwiGLU feed-forward of 8/3 of the width, so that its three matrices hold what a plain 4x pair would, rounded
  to a multiple of 32 / 64 / 128 as the width passes 512 and 1024 (vector and tile lengths of matmul kernels);
  at the 0.5M and 2M rungs it is rounded down, at 5M up, to meet the rung's name.
* All heads have their own keys and values; from 1B on four to eight key-value heads are shared, which is
  where the cache of a long text starts to weigh more than the loss it buys.
* Input and output embeddings are tied below 100M, where a second table would rival the blocks, and free from
  there.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thalweg.errors import ModelError
from thalweg.models.folder import load, save

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

__all__ = [
    "LADDER",
    "Shape",
    "build",
    "flops_per_token",
    "load",
    "nearest",
    "non_embedding_parameters",
    "save",
]


@dataclass(frozen=True)
class Shape:
    """One rung: everything about a Llama-shaped model but its vocabulary and context.

    Args:
        name: non-embedding parameters in words, as "5M".
        layers: number of blocks.
        width: size of the residual stream.
        heads: attention heads; each has width / heads dimensions.
        feed_forward: inner size of the SwiGLU feed-forward.
        key_value_heads: heads with own keys and values; None means as many as heads.
        tied: whether input and output embeddings are one table unless build() is told otherwise.
    """

    name: str
    layers: int
    width: int
    heads: int
    feed_forward: int
    key_value_heads: int | None = None
    tied: bool = True

    @property
    def head_size(self) -> int:
        """Dimensions of one attention head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Non-embedding parameters, exact."""
        return non_embedding_parameters(self)


LADDER: tuple[Shape, ...] = (
    Shape("0.2M", 4, 64, 2, 160),
    Shape("0.35M", 3, 96, 3, 256),
    Shape("0.5M", 5, 96, 3, 224),
    Shape("1M", 5, 128, 4, 352),
    Shape("1.5M", 5, 160, 5, 416),
    Shape("2M", 5, 192, 6, 448),
    Shape("3M", 5, 224, 7, 608),
    Shape("5M", 6, 256, 4, 704),
    Shape("7.5M", 6, 320, 5, 864),
    Shape("10M", 8, 320, 5, 864),
    Shape("16M", 9, 384, 6, 1024),
    Shape("25M", 8, 512, 8, 1344),
    Shape("50M", 10, 640, 10, 1728),
    Shape("100M", 14, 768, 12, 2048, tied=False),
    Shape("160M", 15, 960, 15, 2560, tied=False),
    Shape("250M", 16, 1152, 9, 3072, tied=False),
    Shape("500M", 18, 1536, 12, 4096, tied=False),
    Shape("1B", 22, 2048, 16, 5504, key_value_heads=8, tied=False),
    Shape("2B", 30, 2560, 20, 6784, key_value_heads=4, tied=False),
    Shape("3B", 30, 3072, 24, 8192, key_value_heads=8, tied=False),
)

_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
# A written size this many times beyond either end of the ladder is a misunderstanding, not a rounding.
_REACH = 3.0


def non_embedding_parameters(shape: Shape) -> int:
    """Parameters of the blocks and the final norm, exact; embedding and output tables are not counted."""
    key_value_width = (shape.key_value_heads or shape.heads) * shape.head_size
    attention = 2 * shape.width**2 + 2 * shape.width * key_value_width
    feed_forward = 3 * shape.width * shape.feed_forward
    norms = 2 * shape.width
    return shape.layers * (attention + feed_forward + norms) + shape.width


def nearest(size: str | float) -> Shape:
    """The rung nearest to a size in log parameters.

    Args:
        size: non-embedding parameters, as "5M", "1.5B", "300k", "250000" or a number. A number beyond the
            ends of the ladder gives the end; a written size more than 3x beyond them is refused, since
            someone meant it.

    Raises:
        ModelError: the size cannot be read, is not positive, or is far outside the ladder.
    """
    if isinstance(size, bool) or not isinstance(size, str | int | float):
        raise ModelError(f"A model size is a text such as '5M' or a number, not {size!r}.", fix=_allowed())
    wanted = _parse(size) if isinstance(size, str) else float(size)
    if not (math.isfinite(wanted) and wanted > 0):
        raise ModelError(f"A model size must be positive and finite, not {size!r}.", fix=_allowed())
    low, high = LADDER[0].parameters / _REACH, LADDER[-1].parameters * _REACH
    if isinstance(size, str) and not low <= wanted <= high:
        raise ModelError(f"Model size {size!r} is far outside the ladder.", fix=_allowed())
    return min(LADDER, key=lambda shape: abs(math.log(shape.parameters / wanted)))


def _parse(text: str) -> float:
    """Number of parameters in a text; raises ModelError with the closest rung's name."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(e[0-9]+)?\s*([kmb]?)\s*", text.lower())
    if match is None:
        names = [shape.name for shape in LADDER]
        close = difflib.get_close_matches(text.strip().upper(), names, n=1, cutoff=0.5)
        meant = f"Did you mean {close[0]!r}? " if close else ""
        raise ModelError(f"Model size {text!r} cannot be read.", fix=meant + _allowed())
    mantissa, exponent, suffix = match.groups()
    return float(mantissa + (exponent or "")) * _SUFFIXES[suffix]


def _allowed() -> str:
    return "Give a size such as 5M, 300k or 1.5B; the rungs are " + ", ".join(s.name for s in LADDER) + "."


def flops_per_token(shape: Any, vocab_size: int | None = None, context: int | None = None) -> float:
    """Floating-point operations to train on one token (forward and backward; the forward alone is a third).

    6 * (N + V * width) for the matrices, with N the non-embedding parameters and V * width the output table,
    plus 12 * layers * width * context / 2 for attention: queries with keys and weights with values are 2 *
    context * width each forward, three times that with the backward, and a causal token sees half the context
    on average. A multiply-add counts as two. Looking up an input embedding costs nothing. The causal half is
    counted whether or not a kernel skips the other half, so that utilisation is of useful work.

    Args:
        shape: a Shape, a Hugging Face config, or a model. All parameters are taken as active (not so in
            mixtures of experts).
        vocab_size: V; may be left out where a config says it.
        context: tokens a sequence; may be left out where a config says max_position_embeddings.

    Returns:
        FLOPs a token.
    """
    if isinstance(shape, Shape):
        if vocab_size is None or context is None:
            raise TypeError("a Shape knows neither vocab_size nor context: give both")
        parameters, layers, attention_width = non_embedding_parameters(shape), shape.layers, shape.width
        output_width = shape.width
    else:
        config = getattr(shape, "config", shape)
        parameters = _count_non_embedding(shape)
        layers, output_width = config.num_hidden_layers, config.hidden_size
        head_size = getattr(config, "head_dim", None) or output_width // config.num_attention_heads
        attention_width = config.num_attention_heads * head_size
        vocab_size = config.vocab_size if vocab_size is None else vocab_size
        context = config.max_position_embeddings if context is None else context
    return 6.0 * (parameters + vocab_size * output_width) + 12.0 * layers * attention_width * context / 2


def _count_non_embedding(config_or_model: Any) -> int:
    """Parameters outside the embedding tables and the output head (a config is built without memory)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = config_or_model
    if not isinstance(model, torch.nn.Module):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config_or_model)
    tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    head = model.get_output_embeddings()
    tables += list(head.parameters()) if head is not None else []
    excluded = {id(table) for table in tables}
    return sum(p.numel() for p in model.parameters() if id(p) not in excluded)


def build(shape: Shape, vocab_size: int, context: int, seed: int, tie: bool | None = None) -> LlamaForCausalLM:
    """A freshly initialised Llama-shaped model in float32 on the CPU.

    The same arguments give the same weights whatever random numbers were drawn before, and the global
    generators are left as they were. The initialisation is described in `thalweg.models.initialisation`.

    Args:
        shape: a rung, see nearest().
        vocab_size: rows of the embedding table.
        context: tokens a sequence at most (max_position_embeddings).
        seed: of the weights.
        tie: one table for input and output embeddings; None takes the rung's own choice.

    Raises:
        ModelError: sizes that make no model.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from thalweg.models.initialisation import initialise

    if vocab_size < 2 or context < 1:
        raise ModelError(f"A model needs vocab_size >= 2 and context >= 1, not {vocab_size} and {context}.")
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads or shape.heads,
        max_position_embeddings=context,
        tie_word_embeddings=shape.tied if tie is None else tie,
        rms_norm_eps=1e-5,
        use_cache=False,
        # The tokenizer decides these; save() writes its ids.
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    initialise(model, seed)
    return model.train()
