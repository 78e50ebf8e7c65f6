"""Masks: counts are exact, ties and what was pruned before included."""

from __future__ import annotations

import pytest
import torch

from thalweg.errors import ModelError, RecipeError
from thalweg.methods.pruning.masks import (
    Target,
    below_all,
    lowest_of_all,
    of_every,
    sparsity_of,
    target,
    without_lowest,
)


@pytest.mark.parametrize(
    ("sparsity", "weights", "pruned"),
    [(0.0, 7, 0), (0.5, 7, 3), (0.29, 100, 29), (0.3, 10, 3), (0.7, 10, 7), (0.1, 9, 0), (0.99, 200, 198),
     (0.6, 3_000_000_000, 1_800_000_000)],
)  # fmt: skip
def test_counts_are_the_floor(sparsity, weights, pruned):
    assert Target(sparsity).pruned(weights) == pruned


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("2:4", Target(0.5, 2, 4)),
        ("4:8", Target(0.5, 4, 8)),
        ("1:4", Target(0.75, 1, 4)),
        ("unstructured", Target(0.5)),
    ],
)
def test_patterns_say_how_many_are_kept(pattern, expected):
    assert target(0.5, pattern, "wanda") == expected


@pytest.mark.parametrize(
    "pattern", ["", "2", "4:2", "4:4", "0:4", "2:4:8", "-2:4", "2.0:4", "2:4 ", "٢:٤x", "structured", "99999:100000"]
)
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(RecipeError, match="no pattern") as caught:
        target(0.5, pattern, "wanda")
    assert caught.value.where == "wanda:pattern"
    assert "2:4" in caught.value.fix


def test_a_sparsity_that_contradicts_the_pattern_is_refused():
    assert target(0.75, "1:4", "wanda").sparsity == 0.75
    with pytest.raises(RecipeError, match=r"1:4 prunes 0\.75 of the weights, not 0\.6"):
        target(0.6, "1:4", "wanda")


def test_a_pattern_must_divide_the_inputs(linear_of):
    Target(0.5, 2, 4).check(linear_of(torch.ones(3, 8)), "layers.1")
    with pytest.raises(ModelError, match=r"layers\.1\.one has 10 inputs, no multiple of 4"):
        Target(0.5, 2, 4).check(linear_of(torch.ones(3, 10)), "layers.1")


@pytest.mark.parametrize("count", [0, 1, 5, 11, 12])
def test_the_lowest_go_and_no_more(count):
    scores = torch.rand(3, 12, generator=torch.Generator().manual_seed(0))
    keep = without_lowest(scores, count)
    assert (~keep).sum(-1).tolist() == [count] * 3
    for row, mask in zip(scores, keep, strict=True):
        assert set(row[~mask].tolist()) == set(row.sort().values[:count].tolist())


def test_of_equal_ones_the_first_go():
    assert without_lowest(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2).tolist() == [False, False, True, True]
    assert without_lowest(torch.zeros(2, 5), 3).tolist() == [[False, False, False, True, True]] * 2


def test_of_every_four_two_are_kept():
    scores = torch.tensor([[4.0, 3, 2, 1, 1, 2, 3, 4], [0, 9, 0, 9, 1, 1, 1, 1]])
    expected = [[1, 1, 0, 0, 0, 0, 1, 1], [0, 1, 0, 1, 0, 0, 1, 1]]
    assert of_every(scores, 2, 4).int().tolist() == expected
    assert of_every(scores, 1, 8).sum(-1).tolist() == [1, 1]


def test_what_was_pruned_before_goes_first():
    scores, before = torch.tensor([0.0, 3.0, 0.0, 2.0]), torch.tensor([True, False, True, True])
    assert without_lowest(below_all(scores, before), 2).tolist() == [False, False, True, True]
    assert below_all(scores, None) is scores


@pytest.mark.parametrize("count", [0, 1, 17, 40, 58, 59])
@pytest.mark.parametrize("ties", [False, True])
def test_one_threshold_for_all_is_that_of_all_in_one(count, ties):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(shape, generator=generator) for shape in ((3, 4), (5, 7), (2, 6))]
    if ties:
        scores = [(one * 4).floor() / 1e30 for one in scores]
    masks = lowest_of_all(lambda: iter(scores), count)
    expected = without_lowest(torch.cat([one.flatten() for one in scores]), count)
    assert torch.equal(torch.cat([mask.flatten() for mask in masks]), expected)
    assert [mask.shape for mask in masks] == [one.shape for one in scores]


def test_sparsity_is_the_share_of_zeros(linear_of):
    assert sparsity_of(linear_of(torch.tensor([[0.0, 1.0, 0.0, -2.0]]))) == 0.5
