"""Flows against one step of gradient descent, in the numbers of the sheet and in their orders."""

from __future__ import annotations

import math

import pytest
import torch

from thalweg.numerics import modified_flows
from thalweg.numerics.modified_flows import (
    implicit_field,
    negative_gradient_field,
    principal_coefficient,
    principal_field,
    third_order_field,
)

SCALES = torch.tensor([4.0, 1.0], dtype=torch.float64)


def quadratic(theta):
    return 0.5 * (SCALES * theta**2).sum()


def along(field, theta, time, substeps=20):
    """Where the flow is after `time`: classical Runge-Kutta."""
    dt = time / substeps
    for _ in range(substeps):
        one = field(theta)
        two = field(theta + 0.5 * dt * one)
        three = field(theta + 0.5 * dt * two)
        four = field(theta + dt * three)
        theta = theta + dt / 6 * (one + 2 * two + 2 * three + four)
    return theta


FIELDS = [
    (lambda energy, h: lambda theta: negative_gradient_field(energy, theta), 0.904837),
    (lambda energy, h: lambda theta: implicit_field(energy, theta, h), 0.900325),
    (lambda energy, h: lambda theta: third_order_field(energy, theta, h), 0.900024),
]


@pytest.mark.parametrize(("field", "expected"), FIELDS)
def test_one_step_oracle(field, expected):
    """Curvature 1, h = 0.1, from 1: gradient descent is at 0.9."""
    start = torch.ones(1, dtype=torch.float64)
    found = along(field(lambda theta: 0.5 * (theta**2).sum(), 0.1), start, 0.1)
    assert float(found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("field", "order"), zip([field for field, _ in FIELDS], [2, 3, 4], strict=True))
def test_orders_on_an_energy_that_is_no_quadratic(field, order):
    """Halving h divides the distance to one step of gradient descent by 2^order."""

    def energy(theta):
        return (theta[0] ** 4 + torch.sin(theta[1]) * theta[0] + torch.exp(0.5 * theta[1])).sum()

    start = torch.tensor([0.9, 0.4], dtype=torch.float64)
    distances = []
    for h in (0.004, 0.002):
        step = start + h * negative_gradient_field(energy, start)
        distances.append(float((along(field(energy, h), start, h) - step).norm()))
    assert math.log2(distances[0] / distances[1]) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize(
    ("h_lambda", "expected"),
    [(0.0, -1), (0.1, -1.053605), (0.5, -1.386294), (1.5, -0.462098 + 2.094395j), (1.0, -100)],
)
def test_principal_coefficient_oracle(h_lambda, expected):
    assert abs(principal_coefficient(h_lambda) - expected) < 1e-6


@pytest.mark.parametrize("h_lambda", [-0.7, 0.1, 0.9, 1.3, 1.9, 2.5])
def test_principal_flow_is_one_step_on_a_quadratic(h_lambda):
    factor = modified_flows.cmath.exp(principal_coefficient(h_lambda) * h_lambda)
    assert abs(factor - (1.0 - h_lambda)) < 1e-12


@pytest.mark.parametrize(("h_lambda", "falls"), [(0.5, True), (1.5, True), (1.99, True), (2.01, False)])
def test_stability_of_the_principal_flow(h_lambda, falls):
    assert (principal_coefficient(h_lambda).real < 0) == falls


def test_principal_field_in_a_rotated_valley():
    """Integrated for time h it is one step of gradient descent, also across the axes."""
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    start, h = torch.tensor([1.0, 2.0], dtype=torch.float64), 0.2

    def energy(theta):
        return quadratic(turn @ theta)

    found = along(lambda theta: principal_field(energy, theta, h).real, start, h)
    assert found.tolist() == pytest.approx((start + h * negative_gradient_field(energy, start)).tolist(), abs=1e-7)


def test_drift_oracle():
    """The flow parts from a step by (h^2 / 2) ||H g||, to O(h^3)."""
    start, h = torch.tensor([0.75, 4.0], dtype=torch.float64), 0.1
    step = start + h * negative_gradient_field(quadratic, start)
    flow = along(lambda theta: negative_gradient_field(quadratic, theta), start, h)
    assert float((flow - step).norm()) == pytest.approx(0.056178, abs=1e-6)
    assert 0.5 * h**2 * float((SCALES**2 * start).norm()) == pytest.approx(0.063246, abs=1e-6)
