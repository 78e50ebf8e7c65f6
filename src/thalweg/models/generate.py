"""Text from a model: a few samples to look at, the same for the same seed, without disturbing a run.

A run's own random stream must not notice that someone looked, or looking would change the result: the global
generators are put back as they were, and so are the modules' modes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from thalweg.errors import ModelError
from thalweg.models.head import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
) -> str:
    """Continues one prompt; see samples(), whose first text this is."""
    return samples(model, tokenizer, [prompt], max_new_tokens, temperature, top_k, seed)[0]


def samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
) -> list[str]:
    """Continues several prompts in one batch, with a key-value cache.

    Args:
        model: any transformers causal language model.
        tokenizer: its tokenizer; an end-of-text token, where it has one, ends a text and stands for an empty
            prompt.
        prompts: texts; one too long to leave room for the new tokens keeps its end, with a warning.
        max_new_tokens: new tokens a prompt, at most the model's context less one.
        temperature: of the sampling; 0 takes the likeliest token each time.
        top_k: sample among so many likeliest tokens; None among all.
        seed: of the sampling. The global random state is neither read nor changed.

    Returns:
        The new text of each prompt (without the prompt).

    Raises:
        ModelError: options out of range, or an empty prompt that the tokenizer has no token for.
    """
    if max_new_tokens < 1 or temperature < 0 or (top_k is not None and top_k < 1):
        raise ModelError(
            "Generation needs max_new_tokens >= 1, temperature >= 0 and top_k >= 1 or none, "
            f"not {max_new_tokens}, {temperature} and {top_k}."
        )
    if not prompts:
        return []
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        max_new_tokens = min(max_new_tokens, max(1, context - 1))
    rows = _encode(tokenizer, prompts, None if context is None else max(1, context - max_new_tokens))
    end = tokenizer.eos_token_id
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end if end is not None else 0
    length = max(map(len, rows))
    # Filled on the left, so that every row's next token comes at the same place.
    inputs = torch.tensor([[filler] * (length - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=model.device)
    output = _sample(model, inputs, mask, max_new_tokens, temperature, top_k, seed, end, filler)
    new = output[:, length:].tolist()
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in new]


def _encode(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], room: int | None) -> list[list[int]]:
    """Token ids of each prompt, its last `room` ones at most, never empty."""
    rows = []
    for prompt in prompts:
        row = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if not row:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            if start is None:
                raise ModelError("The prompt is empty and the tokenizer has no token to start a text with.")
            row = [start]
        if room is not None and len(row) > room:
            warnings.warn(f"A prompt of {len(row)} tokens was cut to its last {room}.", stacklevel=3)
            row = row[-room:]
        rows.append(row)
    return rows


@torch.no_grad()
def _sample(
    model: PreTrainedModel,
    inputs: torch.Tensor,
    mask: torch.Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    end: int | None,
    filler: int,
) -> torch.Tensor:
    """Token ids [B, prompt + new] by transformers' own generate, under a seed of our own."""
    from transformers import GenerationConfig

    greedy = temperature == 0
    options = {} if greedy else {"temperature": temperature, "top_k": top_k or 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=not greedy,
        use_cache=True,
        eos_token_id=end,
        pad_token_id=filler,
        **options,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), evaluation_mode(model):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(model.device):
                torch.cuda.manual_seed(seed)
        generator: Any = model  # its mixin's type is lost on the way through Module's __getattr__
        return generator.generate(inputs, attention_mask=mask, generation_config=config)
