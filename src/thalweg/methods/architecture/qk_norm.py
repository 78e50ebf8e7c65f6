"""qk-norm: normalise the queries and keys of every attention head, so that attention logits cannot grow.

    q <- gain_q * q / rms(q)      k <- gain_k * k / rms(k)      over the d_h dimensions of a head; a gain a layer,
    z = q . k / sqrt(d_h)                                       shared by its heads; before the rotary embedding

With gains of 1 |q| = |k| = sqrt(d_h), so |z| <= sqrt(d_h) whatever the projections are, and what scales a projection
changes nothing. Without it the logits of large models at high rates grow until the softmax is one-hot and training
diverges.

The model that comes out is transformers' Qwen3, which is Llama with exactly this: checkpoints stay plain Hugging Face
folders that load anywhere. The gains start at 1 and are vectors to an optimizer (no weight decay).

Source: "Small-scale proxies for large-scale Transformer training instabilities" (2023, arXiv:2309.14322), after
"Scaling Vision Transformers to 22 Billion Parameters" (2023). Where we deviate: theirs is a layer
norm, ours divides by the root mean square only, as today's models do; the two differ by the mean over a head, one
direction of d_h, and are the same where projections have none. The constant beside the mean square is the model's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from thalweg.errors import ModelError

# Of a Llama's config, what says which class it belongs to, not what shape it has.
OF_THE_CLASS = ("model_type", "architectures", "transformers_version")


def qk_norm(model: nn.Module) -> nn.Module:
    """A Llama with qk-norm: a new model around the same weights, with gains of 1. The old one is not to be used on.

    A model that has qk-norm already is given back as it is. One that was trained without computes something else
    afterwards, and has to be trained further.

    Raises:
        ModelError: a model that is no Llama, or one whose feed-forward has biases.
    """
    from transformers import LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    attentions = [module for module in model.modules() if hasattr(module, "q_proj") and hasattr(module, "k_proj")]
    if attentions and all(hasattr(module, "q_norm") and hasattr(module, "k_norm") for module in attentions):
        return model
    if not isinstance(model, LlamaForCausalLM) or model.config.mlp_bias:
        raise ModelError(
            f"qk-norm can be put into a Llama without biases in its feed-forward, not into {type(model).__name__}",
            where="qk_norm",
            fix="Use a size of the ladder, a Llama, or a model that comes with qk-norm (Qwen3, Gemma 3, OLMo 2).",
        )
    shape = {name: value for name, value in model.config.to_dict().items() if name not in OF_THE_CLASS}
    known = Qwen3Config().to_dict()
    config = Qwen3Config(**{name: value for name, value in shape.items() if name in known})
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        normed = Qwen3ForCausalLM(config)
    _take_over(normed, model)
    return normed.train(model.training)


def _take_over(normed: Any, model: Any) -> None:
    """Give a model without memory of its own the weights of another, and gains of 1."""
    weights = model.state_dict()
    like = model.get_input_embeddings().weight
    for name, parameter in normed.named_parameters():
        if name not in weights:
            weights[name] = torch.ones(parameter.shape, dtype=like.dtype, device=like.device)
    normed.load_state_dict(weights, assign=True)
    normed.tie_weights()
    # Its buffers are computed, not loaded.
    normed.model.rotary_emb = model.model.rotary_emb
    normed.generation_config = model.generation_config
    for name, parameter in model.named_parameters():
        normed.get_parameter(name).requires_grad_(parameter.requires_grad)


class QKNorm:
    """`qk_norm` as a part of a recipe: installed before anything looks at the model."""

    def install(self, model: nn.Module) -> nn.Module:
        """The model to train."""
        return qk_norm(model)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the gains are weights of the model."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""
