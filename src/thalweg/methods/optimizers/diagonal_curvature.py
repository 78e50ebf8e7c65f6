"""Estimates of the diagonal of a loss's curvature, one extra gradient each.

Gauss-Newton-Bartlett: sample a label for every position from the model's own distribution, y_b ~ softmax(logits_b), and
take the gradient of the mean cross-entropy over the B positions. Then

    E[B g * g] = diagonal of the Gauss-Newton matrix of the mean cross-entropy       g * g elementwise

never negative. With the labels of the data in place of sampled ones it would be another matrix (the empirical Fisher).

Hutchinson: for u ~ N(0, I), E[u * (H u)] = diagonal of the Hessian H, of either sign.

Source: "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training" (2023,
arXiv:2305.14342), Algorithms 1 and 2.

Labels are functions of the logits and of a whole number a position (`draws`), so who cuts a batch into micro-batches,
ranks or chunks that are computed twice gets the same labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

# Draws are whole numbers below this: float32 holds them and their halves exactly.
RESOLUTION = 1 << 23
IGNORED = -100


def generator_of(seed: int, step: int, device: torch.device) -> torch.Generator:
    """A generator that is a function of seed and step; neighbours of either have nothing in common."""
    mixed = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device=device).manual_seed(mixed)


def draws(shape: Sequence[int], seed: int, step: int, device: torch.device | str) -> Tensor:
    """Whole numbers in [0, RESOLUTION), int64, for `labels_from`."""
    device = torch.device(device)
    return torch.randint(RESOLUTION, tuple(shape), generator=generator_of(seed, step, device), device=device)


@torch.no_grad()
def labels_from(logits: Tensor, draws: Tensor) -> Tensor:
    """Labels distributed as softmax(logits), by inverting the cumulative distribution at a draw.

    Args:
        logits: [..., V], any floating type.
        draws: [...], int64 in [0, RESOLUTION); what is negative stays as it is, so that -100 remains ignored.
    """
    cumulative = torch.softmax(logits.float(), -1).cumsum(-1)
    # The sum of all is 1 to rounding only: in its own units no draw lies above it.
    levels = (draws.unsqueeze(-1) + 0.5) / RESOLUTION * cumulative[..., -1:]
    labels = torch.searchsorted(cumulative, levels).squeeze(-1).clamp(max=logits.shape[-1] - 1)
    return torch.where(draws < 0, draws, labels)


def sampled_labels(logits: Tensor, seed: int = 0, step: int = 0) -> Tensor:
    """Labels [...] sampled from softmax(logits [..., V]): a function of logits, seed and step."""
    return labels_from(logits, draws(logits.shape[:-1], seed, step, logits.device))


class SampledCrossEntropy(nn.Module):
    """An objective (`forward(logits, draws) -> losses`) whose labels are sampled from the logits.

    Where an objective gets targets this one gets draws; a position with a draw of -100 has no loss.
    """

    def forward(self, logits: Tensor, draws: Tensor) -> Tensor:
        exact = logits if logits.dtype == torch.float64 else logits.float()
        labels = labels_from(exact, draws)
        losses = F.cross_entropy(exact.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.view(draws.shape)


def probe(parameters: Sequence[Tensor], seed: int, step: int) -> list[Tensor]:
    """u ~ N(0, I) in the layout of the parameters; a shard gets its part of the whole draw."""
    generator = generator_of(seed, step, parameters[0].device)
    vector = []
    for parameter in parameters:
        whole = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=parameter.dtype)
        if isinstance(parameter, DTensor):
            whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
        vector.append(whole)
    return vector
