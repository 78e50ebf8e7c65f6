"""Estimates of the diagonal curvature against exact expectations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from thalweg.methods.optimizers.diagonal_curvature import (
    RESOLUTION,
    SampledCrossEntropy,
    draws,
    labels_from,
    probe,
    sampled_labels,
)
from thalweg.numerics.curvature import hessian_vector_product


def test_labels_invert_the_cumulative_distribution():
    logits = torch.tensor([0.0, math.log(2.0), math.log(3.0)])
    levels = torch.tensor([0.0, 0.166, 0.168, 0.499, 0.501, 0.99999])
    labels = labels_from(logits.expand(6, 3), (levels * RESOLUTION).long())
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    # Every level between two draws has its label: the shares are the probabilities to the resolution.
    every = labels_from(logits.expand(6000, 3), torch.linspace(0, RESOLUTION - 1, 6000).long())
    assert every.bincount().tolist() == pytest.approx([1000, 2000, 3000], abs=2)


def test_impossible_labels_are_not_drawn_and_ignored_ones_stay():
    logits = torch.tensor([-math.inf, 0.0, -math.inf, -math.inf])
    ends = torch.tensor([0, RESOLUTION - 1, -100])
    assert labels_from(logits.expand(3, 4), ends).tolist() == [1, 1, -100]


def test_labels_are_functions_of_logits_seed_and_step_alone():
    logits = torch.randn(8, 5, 11, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    whole = draws((8, 5), 3, 7, "cpu")
    labels = labels_from(logits, whole)
    assert torch.equal(labels, sampled_labels(logits, seed=3, step=7))
    halves = [labels_from(logits[i : i + 4], whole[i : i + 4]) for i in (0, 4)]
    assert torch.equal(labels, torch.cat(halves))
    assert not torch.equal(labels, sampled_labels(logits, seed=3, step=8))
    assert not torch.equal(labels, sampled_labels(logits, seed=4, step=7))
    assert torch.equal(state, torch.get_rng_state())


def test_gauss_newton_bartlett_has_the_expectation_of_the_sheet():
    """Raw logits as parameters, B = 1: E[(p - e_y)^2] = p (1 - p)."""
    logits = torch.tensor([0.0, math.log(2.0), math.log(3.0)], dtype=torch.float64, requires_grad=True)
    p = torch.softmax(logits.detach(), 0)
    mean = torch.zeros(3, dtype=torch.float64)
    for label in range(3):
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor(label)), logits)
        mean += p[label] * gradient**2
    torch.testing.assert_close(mean, torch.tensor([0.138889, 0.222222, 0.25]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(mean, p * (1 - p), atol=1e-12, rtol=0)


def test_factor_of_the_positions_makes_it_the_average_of_theirs():
    """B E[g * g] of a linear classifier, over all labels of two positions: the mean of p (1 - p) x^2."""
    torch.manual_seed(0)
    weight, inputs = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.randn(2, 2, dtype=torch.float64)
    p = torch.softmax(inputs @ weight.detach().T, -1)
    exact = torch.einsum("bc,bd->cd", p * (1 - p), inputs**2) / 2
    mean = torch.zeros_like(exact)
    for labels in itertools.product(range(3), repeat=2):
        (g,) = torch.autograd.grad(F.cross_entropy(inputs @ weight.T, torch.tensor(labels)), weight)
        mean += p[0, labels[0]] * p[1, labels[1]] * 2 * g**2
    torch.testing.assert_close(mean, exact, atol=1e-12, rtol=0)


def test_the_objective_is_cross_entropy_with_the_sampled_labels():
    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0), requires_grad=True)
    drawn = draws((2, 5), 0, 0, "cpu")
    drawn[1, 2:] = -100
    losses = SampledCrossEntropy()(logits, drawn)
    labels = labels_from(logits, drawn)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(2, 5)
    assert losses.shape == (2, 5)
    assert torch.equal(losses, expected)
    assert (losses[1, 2:] == 0).all()
    assert (losses[0] > 0).all()


def test_hutchinson_over_all_signs_is_the_diagonal():
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    theta = torch.zeros(2, requires_grad=True)
    samples = []
    for signs in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)):
        u = torch.tensor(signs)
        samples.append(u * hessian_vector_product(lambda: 0.5 * theta @ matrix @ theta, [theta], [u])[0])
    assert [sample.tolist() for sample in samples] == [[3.0, 4.0], [1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]
    assert torch.stack(samples).mean(0).tolist() == [2.0, 3.0]


def test_probes_are_normal_and_functions_of_seed_and_step():
    parameters = [torch.zeros(50, 40), torch.zeros(300)]
    one, two, other = (probe(parameters, 1, step) for step in (2, 2, 3))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])
    assert one[0].mean().abs() < 0.1
    assert one[0].var().item() == pytest.approx(1.0, abs=0.1)
