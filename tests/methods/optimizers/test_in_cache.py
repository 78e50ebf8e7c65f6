"""Parts of a chain of operators: every number once, in views of the tensors themselves."""

from __future__ import annotations

import pytest
import torch

from thalweg import catalog
from thalweg.methods.optimizers import in_cache
from thalweg.methods.optimizers.in_cache import batches_of_whole, pieces

SHAPES = [(3, 5), (2,), (1,), (7, 9), (4,), (0,), (10,)]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(in_cache, "PIECE", 10)


def tensors(offset=0.0):
    return [torch.full(shape, offset + place) for place, shape in enumerate(SHAPES)]


def test_every_number_is_in_one_piece():
    one, other = tensors(), tensors(100.0)
    for places, (left, right) in pieces(one, other):
        assert [view.shape for view in left] == [view.shape for view in right]
        assert sum(view.numel() for view in left[:-1]) < 10
        assert all(bool((view == place).all()) for place, view in zip(places, left, strict=True))
        torch._foreach_add_(left, right)
    for place, tensor in enumerate(one):
        assert bool((tensor == 100.0 + 2 * place).all())


def test_small_tensors_are_together_and_large_ones_cut():
    sizes = [[view.numel() for view in views] for _, (views,) in pieces(tensors())]
    assert sizes == [[10], [5, 2, 1, 10], [10], [10], [10], [10], [10], [3, 4, 0, 10]]


def test_what_does_not_lie_in_a_row_stays_whole():
    across = torch.zeros(8, 6).mT
    views = [views for _, (views, _) in pieces([across, torch.zeros(3)], [torch.zeros(6, 8), torch.zeros(3)])]
    assert [[tuple(view.shape) for view in some] for some in views] == [[(6, 8)], [(3,)]]
    views[0][0].add_(1.0)
    assert bool((across == 1.0).all())


def test_batches_of_whole_tensors():
    assert [[t.numel() for t in batch] for batch in batches_of_whole(tensors())] == [[15], [2, 1, 63], [4, 0, 10]]
    assert batches_of_whole([]) == []


def test_other_devices_take_everything_at_once():
    given = [torch.empty(shape, device="meta") for shape in SHAPES]
    [(places, (views,))] = pieces(given)
    assert (places, views) == (list(range(len(SHAPES))), given)
    assert batches_of_whole(given) == [given]


@pytest.mark.parametrize("name", ["sophia", "lars", "lamb"])
def test_pieces_change_no_number(name, monkeypatch):
    """Steps in pieces of ten numbers and all at once."""
    left = []
    for piece in (10, 1 << 20):
        monkeypatch.setattr(in_cache, "PIECE", piece)
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
        optimizer = catalog.resolve(name)(parameters, lr=0.1, weight_decay=0.1)
        if name == "sophia":
            for curvature in optimizer.buffers(parameters, "hessian"):
                curvature.uniform_(0.0, 40.0, generator=generator)
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        left.append(parameters)
    for one, other in zip(*left, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
