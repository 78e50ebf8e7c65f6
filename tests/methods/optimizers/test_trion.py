"""Trion against a plain reference, the buffer of the sheet, and Muon as its limit."""

from __future__ import annotations

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.optimizers import Muon, Trion
from thalweg.methods.optimizers.dct_basis import basis_rows
from thalweg.methods.optimizers.newton_schulz import newton_schulz


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def basis_of(size):
    return basis_rows("dct", size, torch.float64, torch.device("cpu")).T


def run(weight, gradients, **options):
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = Trion([parameter], **options)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach(), optimizer.state[parameter]


def reference(weight, gradients, lr, decay, rank, momentum, factor):
    """One tall matrix."""
    basis, buffer = basis_of(weight.shape[1]), torch.zeros_like(weight)
    for gradient in gradients:
        whole = buffer + gradient
        found = whole @ basis
        indices = found.norm(p=1, dim=0).topk(rank).indices.sort().values
        chosen, low = basis[:, indices], found[:, indices]
        buffer = momentum * whole + (1 - momentum) * (whole - low @ chosen.T)
        weight = weight * (1 - lr * decay) - lr * factor * newton_schulz(low) @ chosen.T
    return weight


@pytest.mark.parametrize(
    ("scale", "tall", "wide"),
    [
        ("kimi", 0.2 * 8**0.5, 0.2 * 8**0.5),
        ("kj", (8 / 6) ** 0.5, 1.0),
        ("spectral", (8 / 6) ** 0.5, (6 / 8) ** 0.5),
        ("none", 1.0, 1.0),
    ],
)
def test_equals_the_reference_tall_and_wide(scale, tall, wide):
    weight, gradients = random(8, 6, seed=99), [random(8, 6, seed=step) for step in range(6)]
    told = {"lr": 0.05, "weight_decay": 0.2, "rank": 3, "momentum": 0.8, "scale": scale}
    expected = reference(weight, gradients, 0.05, 0.2, 3, 0.8, tall)
    for transform in ("matmul", "fft"):
        torch.testing.assert_close(run(weight, gradients, transform=transform, **told)[0], expected, atol=1e-9, rtol=0)
    turned, _ = run(weight.T, [gradient.T for gradient in gradients], **told)
    torch.testing.assert_close(turned.T, reference(weight, gradients, 0.05, 0.2, 3, 0.8, wide), atol=1e-9, rtol=0)
    parameter = torch.nn.Parameter(weight.T.clone())
    optimizer = Trion([{"params": [parameter], "kind": "matrix", "transposed": True}], **told)
    for gradient in gradients:
        parameter.grad = gradient.T
        optimizer.step()
    torch.testing.assert_close(parameter.detach().T, expected, atol=1e-9, rtol=0)


def test_buffer_of_the_sheet():
    gradient = torch.tensor([[3.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    _, state = run(torch.zeros(2, 2).double(), [gradient], lr=0.1, rank=1, momentum=0.95)
    expected = torch.tensor([[2.9, 0.9], [0.95, 0.95]], dtype=torch.float64)
    torch.testing.assert_close(state["momentum_buffer"], expected, atol=1e-12, rtol=0)


def test_full_rank_is_muon_without_the_look_ahead():
    """The polar factor does not mind an orthogonal matrix beside it, nor the scale of the buffer."""
    weight, gradients = random(7, 5, seed=99), [random(7, 5, seed=step) for step in range(5)]
    ours, state = run(weight, gradients, lr=0.05, weight_decay=0.1, rank=5, momentum=0.9)
    parameter = torch.nn.Parameter(weight.clone())
    muon = Muon([parameter], lr=0.05, weight_decay=0.1, momentum=0.9, nesterov=False)
    for gradient in gradients:
        parameter.grad = gradient
        muon.step()
    torch.testing.assert_close(ours, parameter.detach(), atol=1e-9, rtol=0)
    torch.testing.assert_close(
        state["momentum_buffer"], 9 * muon.state[parameter]["momentum_buffer"], atol=1e-9, rtol=0
    )


def test_what_is_not_sent_waits_whole():
    """A gradient in a column that is never chosen adds up in the buffer, without decay."""
    basis = basis_of(4)
    loud, quiet = random(6, 1) @ basis[:, :1].T, 1e-3 * random(6, 1, seed=1) @ basis[:, 2:3].T
    _, state = run(torch.zeros(6, 4).double(), [loud + quiet] * 5, lr=0.1, rank=1, momentum=0.5)
    found = state["momentum_buffer"] @ basis
    torch.testing.assert_close(found[:, 2:3], 5 * (quiet @ basis)[:, 2:3], atol=1e-12, rtol=0)
    # The sent column: B = M + G, M = 0.5 B, five times.
    torch.testing.assert_close(found[:, :1], (1 - 0.5**5) * (loud @ basis)[:, :1], atol=1e-12, rtol=0)


@pytest.mark.parametrize(("options", "said"), [({"scale": "dion"}, "scale"), ({"momentum": 1.0}, "momentum")])
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        Trion([torch.nn.Parameter(torch.ones(2, 2))], **options)
