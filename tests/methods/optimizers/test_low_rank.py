"""The machinery of low-rank methods: shapes there and back, stacks in pieces, Adam in a subspace, refreshing."""

from __future__ import annotations

import itertools

import pytest
import torch

from thalweg.methods.optimizers import GaLore, low_rank
from thalweg.methods.optimizers.low_rank import rank_of, singular_subspace, stacks


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stack_of(*shapes, **options):
    """One stack of matrices that the shapes say, in their first step, and what the parameters hold."""
    values = [random(*shape, seed=index) for index, shape in enumerate(shapes)]
    optimizer = GaLore([torch.nn.Parameter(value) for value in values], lr=0.1, **options)
    found = stacks(optimizer, optimizer.param_groups[0], optimizer.param_groups[0]["params"])
    assert len(found) == 1
    return found[0], values


@pytest.mark.parametrize(
    ("rank", "columns", "expected"),
    [
        (0.25, 96, 24),
        (0.25, 6, 2),
        (0.001, 50, 1),
        (0.999, 3, 3),
        (1, 50, 1),
        (128, 512, 128),
        (128, 96, 96),
        (7.0, 9, 7),
    ],
)
def test_rank_is_a_number_or_a_share(rank, columns, expected):
    assert rank_of(rank, columns) == expected


def test_whole_and_shards_are_inverses():
    stack, values = stack_of((6, 4), (4, 6), (3, 4, 6), (2, 6, 4), (4, 2, 3, 1))
    whole = stack.whole(values)
    assert (stack.rows, stack.columns, stack.rank) == (6, 4, 1)
    assert whole.shape == (8, 6, 4)
    assert torch.equal(whole[1], values[1].T)
    assert torch.equal(whole[3], values[2][1].T)
    assert torch.equal(whole[6], values[3][1])
    assert torch.equal(whole[7], values[4].reshape(4, 6).T)
    for value, piece in zip(values, stack.shards(whole), strict=True):
        assert torch.equal(value, piece)


def test_state_of_another_shape_comes_back():
    stack, _ = stack_of((6, 4), (3, 4, 6))
    states = stack.states("thing", 6, 2)
    assert [tuple(state.shape) for state in states] == [(6, 2), (3, 6, 2)]
    whole = random(4, 6, 2)
    torch._foreach_copy_(states, stack.divided(whole, states))
    assert torch.equal(stack.assembled(stack.states("thing", 6, 2), states), whole)
    stack.copies("numbers", (2,), torch.int64)
    stack.keep("numbers", torch.arange(8).reshape(4, 2))
    assert stack.copies("numbers", (2,), torch.int64).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_pieces_of_a_stack_are_as_good_as_the_stack(monkeypatch):
    shapes = [(6, 4), (4, 6), (5, 5), (2, 6, 4), (4, 6)]
    results = []
    for elements in (1 << 24, 50, 1):
        monkeypatch.setitem(low_rank.STACK_ELEMENTS, "cpu", elements)
        parameters = [torch.nn.Parameter(random(*shape, seed=index)) for index, shape in enumerate(shapes)]
        optimizer = GaLore(parameters, lr=0.1, rank=0.5, update_proj_gap=2)
        for step in range(3):
            for index, parameter in enumerate(parameters):
                parameter.grad = random(*parameter.shape, seed=100 * step + index)
            optimizer.step()
        results.append([parameter.detach() for parameter in parameters])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


def test_subspace_holds_everything_at_full_rank_and_the_largest_directions_below():
    stack, values = stack_of((7, 5), (5, 7), rank=5)
    gradients = stack.whole(values)
    subspace = singular_subspace(stack, gradients, 1)
    torch.testing.assert_close(subspace.mT @ subspace, torch.eye(5).double().expand(2, 5, 5), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradients @ subspace @ subspace.mT, gradients, atol=1e-12, rtol=0)
    stack, values = stack_of((7, 5), (5, 7), rank=2)
    gradients = stack.whole(values)
    subspace = singular_subspace(stack, gradients, 1)
    left = (gradients - gradients @ subspace @ subspace.mT).square().sum((-2, -1))
    torch.testing.assert_close(left, torch.linalg.svdvals(gradients)[:, 2:].square().sum(-1))


def test_subspace_is_kept_for_the_gap():
    stack, _ = stack_of((6, 4), rank=2)
    optimizer, group, parameters = stack.optimizer, stack.group, stack.parameters
    found = [singular_subspace(stack, random(1, 6, 4, seed=0), 3).clone()]
    for step in range(1, 7):
        (stack,) = stacks(optimizer, group, parameters)
        found.append(singular_subspace(stack, random(1, 6, 4, seed=step), 3).clone())
    new = [not torch.equal(one, two) for one, two in itertools.pairwise(found)]
    assert new == [False, False, True, False, False, True]


def test_adam_in_the_subspace_is_torchs():
    parameter = torch.nn.Parameter(random(6, 2))
    theirs = torch.optim.Adam([parameter], lr=1.0, betas=(0.8, 0.9), eps=1e-3)
    optimizer = GaLore([torch.nn.Parameter(random(6, 4))], lr=1.0, rank=2, beta1=0.8, beta2=0.9, eps=1e-3)
    for step in range(4):
        low = random(6, 2, seed=step)
        before, parameter.grad = parameter.detach().clone(), low.clone()
        theirs.step()
        (stack,) = stacks(optimizer, optimizer.param_groups[0], optimizer.param_groups[0]["params"])
        direction = stack.adam(low[None])
        torch.testing.assert_close(direction[0], before - parameter.detach(), atol=1e-12, rtol=0)


def test_parameters_that_began_later_have_their_own_count():
    early, late = torch.nn.Parameter(random(6, 4)), torch.nn.Parameter(random(6, 4))
    optimizer = GaLore([early, late], lr=0.1, weight_decay=0.0)
    early.grad = random(6, 4)
    optimizer.step()
    early.grad, late.grad = random(6, 4, seed=1), random(6, 4, seed=2)
    before = late.detach().clone()
    optimizer.step()
    assert [optimizer.state[p]["step"] for p in (early, late)] == [2, 1]
    alone = torch.nn.Parameter(before.clone())
    other = GaLore([alone], lr=0.1, weight_decay=0.0)
    alone.grad = random(6, 4, seed=2)
    other.step()
    torch.testing.assert_close(late, alone, atol=1e-12, rtol=0)


def test_nothing_is_nothing():
    empty = torch.nn.Parameter(torch.zeros(0, 3))
    optimizer = GaLore([empty], lr=0.1)
    empty.grad = torch.zeros(0, 3)
    optimizer.step()
    assert stacks(optimizer, optimizer.param_groups[0], [empty]) == []
