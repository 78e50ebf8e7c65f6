"""Sharpness: the largest eigenvalue of the Hessian of a language model's loss on a fixed batch.

Gradient descent with rate eta on a quadratic of curvature lambda is stable while eta lambda < 2. With a rate (or a
preconditioner) of its own for every parameter, theta <- theta - D grad, the matrix that decides is D^(1/2) H D^(1/2),
whose eigenvalues are those of D H; the limit is 2 again. For Adam with the first moment's memory beta1, D is
lr / (sqrt(v / (1 - beta2^t)) + eps), and the limit is 2 (1 + beta1) / (1 - beta1), 38 for beta1 = 0.9.

Sources: "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability" (2021, arXiv:2103.00065);
"Adaptive Gradient Methods at the Edge of Stability" (2022, arXiv:2207.14484).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.models.evaluate import nats_of
from thalweg.models.head import evaluation_mode
from thalweg.numerics.curvature import Spectrum, hessian_vector_product, lanczos

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def sharpness(
    model: PreTrainedModel,
    batch: dict[str, Tensor],
    rates: Sequence[Tensor | float] | None = None,
    *,
    count: int = 1,
    steps: int = 60,
    tolerance: float = 1e-3,
    start: Sequence[Tensor] | None = None,
    seed: int = 0,
) -> Spectrum:
    """The largest eigenvalues of H, or of D^(1/2) H D^(1/2), for the mean cross-entropy on a batch.

    Each product costs about two gradients and its vector stays in memory. The model, its gradients and the global
    random state are left alone. Weights and arithmetic should be float32: no autocast is used.

    Args:
        model: any Hugging Face causal language model, not sharded and not compiled.
        batch: `input_ids` and `targets` [B, T], -100 ignored; the same at every call, if values are to be compared.
        rates: the diagonal D, a number or a tensor for each trainable parameter in the model's order; None is H itself.
        count, steps, tolerance: see `lanczos`.
        start: a vector to begin with, such as `vectors[0]` of the call before; a random one if left out.
        seed: of the random one.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    roots = None if rates is None else [torch.as_tensor(rate, device=model.device).sqrt() for rate in rates]
    if start is None:
        generator = torch.Generator().manual_seed(seed)
        start = [torch.randn(p.shape, generator=generator).to(p.device) for p in parameters]

    def loss() -> Tensor:
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        valid = (batch["targets"] != -100).sum()
        return nats_of(logits.flatten(0, 1), batch["targets"].flatten()).sum() / valid

    def product(vector: list[Tensor]) -> list[Tensor]:
        if roots is None:
            return hessian_vector_product(loss, parameters, vector)
        inner = hessian_vector_product(loss, parameters, _times(roots, vector))
        return _times(roots, inner)

    # Fused attention has no second derivative; torch's plain form does.
    with evaluation_mode(model), sdpa_kernel(SDPBackend.MATH):
        return lanczos(product, start, count, steps=steps, tolerance=tolerance)


def _times(one: Sequence[Tensor], two: Sequence[Tensor]) -> list[Tensor]:
    return [a * b for a, b in zip(one, two, strict=True)]
