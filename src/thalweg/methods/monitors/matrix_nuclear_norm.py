"""Matrix nuclear norm: how compressed a model's hidden states are, without a singular value decomposition.

For one text with last hidden states R [L, d]: subtract the mean over tokens, scale every row to length 1 to get X, and
with c_j the length of column j and D = min(L, d)

    mnn = (sum of the D largest c_j) / L                       O(L d)
    nuclear norm / L = (sum of singular values of X) / L       what it stands for
    matrix entropy = -sum lambda log lambda / log d            lambda: eigenvalues of X^T X / L

For L >= d, mnn is an upper bound on the nuclear norm (equal for orthogonal columns); for L < d columns are left out and
it can fall below. It depends on L: compare at one L only. It does not change when R is scaled, shifted by one vector
for all tokens, or has its tokens or features permuted; a rotation of the features does change it.

Source: "Large Language Model Evaluation via Matrix Nuclear-Norm" (2024, arXiv:2410.10672).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import RecipeError


def normalised_states(states: Tensor) -> Tensor:
    """Hidden states [..., L, d], centred over tokens and with rows of length 1, in float32 or wider.

    A row that equals the mean has no direction: it becomes NaN, as in a text of a single token.
    """
    exact = states if states.dtype == torch.float64 else states.float()
    centred = exact - exact.mean(-2, keepdim=True)
    return centred / torch.linalg.vector_norm(centred, dim=-1, keepdim=True)


def matrix_nuclear_norm(states: Tensor) -> Tensor:
    """The paper's score of hidden states [..., L, d] -> [...]; at most sqrt(D / L)."""
    tokens, features = states.shape[-2:]
    columns = torch.linalg.vector_norm(normalised_states(states), dim=-2)
    return columns.topk(min(tokens, features), dim=-1).values.sum(-1) / tokens


def nuclear_norm(states: Tensor) -> Tensor:
    """The exact nuclear norm of the normalised states over L: [..., L, d] -> [...]."""
    unit, bad = _with_direction(states)
    # Not from the eigenvalues below: a root of their rounding errors would not be small.
    return (torch.linalg.svdvals(unit).sum(-1) / states.shape[-2]).masked_fill(bad, torch.nan)


def matrix_entropy(states: Tensor) -> Tensor:
    """Spectral entropy of the token covariance over log d: [..., L, d] -> [...], in [0, 1]."""
    return torch.special.entr(_eigenvalues(states)).sum(-1) / math.log(states.shape[-1])


def _eigenvalues(states: Tensor) -> Tensor:
    """Eigenvalues of X^T X / L that can be non-zero, [..., min(L, d)], from the smaller of the two Gram matrices."""
    unit, bad = _with_direction(states)
    tokens, features = unit.shape[-2:]
    gram = unit.mT @ unit if features <= tokens else unit @ unit.mT
    values = torch.linalg.eigvalsh(gram / tokens).clamp_min(0.0)
    return values.masked_fill(bad[..., None], torch.nan)


def _with_direction(states: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised states and which texts have none: one of those must not make the others' decomposition fail."""
    unit = normalised_states(states)
    bad = ~unit.isfinite().all(-1).all(-1)
    return unit.masked_fill(bad[..., None, None], 0.0), bad


@torch.no_grad()
def measure(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Both scores of the last hidden states, averaged over the texts of a batch.

    Args:
        model: a Hugging Face causal language model; its weights, mode and the random state stay as they are.
        batch: "input_ids" [B, T], every row one text of T tokens without padding.

    Returns:
        "mnn" and "matrix_entropy"; NaN if no text has two different tokens.
    """
    with _undisturbed(model):
        states = _last_hidden_states(model, batch["input_ids"])
    return {
        "mnn": float(matrix_nuclear_norm(states).nanmean()),
        "matrix_entropy": float(matrix_entropy(states).nanmean()),
    }


class MatrixNuclearNorm:
    """A callback that measures held-out hidden states every so many steps.

    Args:
        every: steps between two measurements.

    Raises:
        RecipeError: `every` below 1.
    """

    def __init__(self, every: int = 100) -> None:
        if every < 1:
            raise RecipeError(f"every = {every} is below 1", where="matrix_nuclear_norm", fix="Try every=100.")
        self.every = every

    def step(self, trainer: Any) -> None:
        """Add "mnn" and "matrix_entropy" to the metrics of this step, if it is time."""
        if trainer.clock.step % self.every == 0:
            trainer.metrics.update(measure(trainer.model, trainer.held_out_batch()))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the clock says when the next measurement is due."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


def _last_hidden_states(model: nn.Module, input_ids: Tensor) -> Tensor:
    """[B, T, d] after the final norm, without computing logits where the model has a body to ask."""
    body = getattr(model, "base_model", model)
    ids = input_ids.to(next(model.parameters()).device)
    if body is not model:
        return body(input_ids=ids, use_cache=False).last_hidden_state
    return model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1]


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module's mode and the random state are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({parameter.device.index or 0 for parameter in model.parameters() if parameter.is_cuda})
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
