"""Sparsity of experts: published sizes, routing losses, the parabola of task loss, and what must be refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thalweg.errors import UserError
from thalweg.laws.moe_sparsity import Experts, balance_loss, fit, route, task_loss, z_loss

VOCAB = 99_487
COUNTS = (8, 16, 32, 64, 128, 256)
# GSM8K task loss of the released d = 512, k = 2 family (a third party's evaluation).
GSM8K = (1.125, 1.054, 1.033, 0.974, 0.912, 0.883)


def family(counts=COUNTS):
    return [Experts(VOCAB, 16, 512, experts, 2) for experts in counts]


def grid(noise=0.0, seed=0, turn=20.0, bend=0.02):
    """Three active sizes by seven TPP; log loss = .1 - .1 log(N / 1e9) + bend log^2(TPP / turn)."""
    rows = [
        (n, t, math.exp(0.1 - 0.1 * math.log(n / 1e9) + bend * math.log(t / turn) ** 2))
        for n in (2e8, 6e8, 2e9)
        for t in (3, 6, 12, 24, 48, 96, 192)
    ]
    table = np.array(rows)
    table[:, 2] *= np.exp(noise * np.random.default_rng(seed).normal(size=len(table)))
    return table


def test_published_sizes():
    models = family()
    assert [round(model.total / 1e6) for model in models] == [320, 521, 924, 1730, 3341, 6563]
    assert all(169e6 < model.activated < 171.5e6 for model in models)
    assert [round(model.tokens_per_parameter(125e9)) for model in models] == [391, 240, 135, 72, 37, 19]
    assert [round(model.sparsity, 4) for model in models] == [0.75, 0.875, 0.9375, 0.9688, 0.9844, 0.9922]
    assert Experts(VOCAB, 16, 2048, 256, 16).activated == pytest.approx(7.12e9, rel=2e-3)
    assert models[0].activated - 2 * VOCAB * 512 == pytest.approx(67e6, rel=5e-3)


def test_all_experts_active_is_dense():
    model = Experts(VOCAB, 16, 512, 4, 4)
    assert model.sparsity == 0
    assert model.total == model.activated
    # Of given inner width, k experts hold what one of k times the width does; the router is d E a layer.
    wide = Experts(VOCAB, 16, 512, 1, 1, expert_width=4096)
    assert model.total - wide.total == 16 * 512 * 3
    # A uniform router then averages the experts.
    outputs = np.random.default_rng(0).normal(size=(5, 4, 3))
    mixed = np.einsum("te,tew->tw", route(np.zeros((5, 4)), 4), outputs)
    assert mixed == pytest.approx(outputs.mean(axis=1), rel=1e-12)
    with pytest.raises(UserError, match="1 to 4"):
        Experts(VOCAB, 16, 512, 4, 5)


def test_routing_weights():
    weights = route(np.array([[1.0, 3.0, 2.0, -1.0]]), 2)
    assert weights == pytest.approx(np.array([[0, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0]]))


def test_routing_losses():
    balanced = 3.0 * np.tile(np.eye(4), (3, 1))
    assert balance_loss(balanced, 1) == pytest.approx(1.0, rel=1e-12)
    assert balance_loss(np.zeros((6, 4)), 4) == pytest.approx(1.0, rel=1e-12)
    collapsed = np.zeros((10, 4))
    collapsed[:, 2] = 50.0
    assert balance_loss(collapsed, 1) == pytest.approx(4.0, rel=1e-9)
    assert z_loss(np.zeros((7, 8))) == pytest.approx(math.log(8) ** 2)


def test_task_loss_counts_answers_only():
    uniform = np.full((6, 50), -math.log(50))
    assert task_loss(uniform, np.arange(6), np.ones(6)) == pytest.approx(math.log(50))
    logs = np.log(np.array([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]))
    assert task_loss(logs, np.array([0, 0, 1]), np.array([0, 1, 1])) == pytest.approx(-np.log([0.25, 0.1]).mean())
    with pytest.raises(UserError, match="prompts"):
        task_loss(logs, np.array([0, 0, 1]), np.zeros(3))


def test_exact_families_are_recovered():
    law = fit(grid())
    assert law.active_exponent == pytest.approx(-0.1, rel=1e-6)
    best, low, high = law.optimum()
    assert (best, low, high) == pytest.approx((20, 20, 20), rel=1e-5)
    assert law.predict(1e9, 40) == pytest.approx(math.exp(0.1 + 0.02 * math.log(2) ** 2), rel=1e-8)
    constants = law.to_dict()
    logs = math.log(1e9), math.log(40)
    spelled = constants["c"] + constants["a"] * logs[0] + constants["b"] * logs[1] + constants["q"] * logs[1] ** 2
    assert math.exp(spelled) == pytest.approx(law.predict(1e9, 40), rel=1e-9)


def test_noisy_families():
    """Errors of 1%: the turn is found within a factor of 1.5, and the intervals hold in at least 18 of 20."""
    turns, runs = 0, 0
    for seed in range(20):
        law = fit(grid(0.01, seed), refits=100)
        best, low, high = law.optimum()
        assert 20 / 1.5 < best < 20 * 1.5
        turns += low <= 20 <= high
        new = math.exp(0.1 + 0.02 * math.log(4) ** 2 + 0.01 * np.random.default_rng(500 + seed).normal())
        bottom, top = law.interval(1e9, 80)
        runs += bottom <= new <= top
        assert top - bottom < 0.1 * new
    assert turns >= 18
    assert runs >= 18


def test_the_released_family_has_no_turn():
    """One active size, and task loss still falling where tokens per parameter are fewest."""
    points = [(m.activated, m.tokens_per_parameter(125e9), loss) for m, loss in zip(family(), GSM8K, strict=True)]
    law = fit(points)
    assert law.active_exponent is None
    assert law.to_dict()["a"] is None
    with pytest.raises(UserError, match="lower with fewer"):
        law.optimum()
    fitted = [law.predict(active, tpp) for active, tpp, _ in points]
    assert fitted == pytest.approx(list(GSM8K), rel=0.025)
    with pytest.raises(UserError, match=r"about 1\.69e\+08 active"):
        law.predict(7e9, 20)


def test_an_outlier_hardly_moves_the_turn():
    table = grid(0.002)
    clean = fit(table).optimum()[0]
    table[9, 2] *= 1.5
    assert fit(table).optimum()[0] == pytest.approx(clean, rel=0.05)


def test_what_cannot_be_identified_is_refused():
    table = grid()
    together = np.array([(n, 1e11 / n, 1.0 + 1e8 / n) for n in np.geomspace(1e8, 1e10, 8)])
    for points, reason in (
        (table[:3], "4 values"),
        (table[(table[:, 1] > 5) & (table[:, 1] < 20)], "4 values"),
        (table[[0, 1, 2, 10]], "4 constants need more than 4"),
        (together, "cannot be told apart"),
        (table * np.array([1, 1, -1]), "positive"),
        (table[:, :2], "rows"),
    ):
        with pytest.raises(UserError, match=reason):
            fit(points)
    with pytest.raises(UserError, match="No best number"):
        fit(grid(turn=2.0)).optimum()
    with pytest.raises(UserError, match="positive"):
        fit(table).predict(0, 20)
