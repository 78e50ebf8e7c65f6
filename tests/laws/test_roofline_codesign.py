"""Loss of shapes, and the shapes that nothing beats."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from thalweg.errors import UserError
from thalweg.laws import robust
from thalweg.laws.pareto import Candidate, best, frontier, price
from thalweg.laws.roofline import Architecture, Machine, Precision, Workload
from thalweg.laws.roofline_codesign import choose, fit

MACHINE, WORK = Machine(85e12, 204.8e9), Workload(1024, 16)


def shape(layers, width, expansion=4.0, experts=1, active=1, kv=None):
    return Architecture(layers, width, kv or width, round(width * expansion / active), 32_000, experts, active)


def additive(one):
    sparse = 0.05 * (1 / one.activation_rate) ** -0.4
    return 1.9 + 1.1 * one.layers**-0.5 + 20 * one.width**-0.7 + 0.3 * one.expansion**-0.8 + sparse


def quadratic(one):
    n, d, r = math.log(one.layers / 6), math.log(one.width / 256), math.log(one.expansion / 3)
    s = math.log(1 / one.activation_rate)
    return math.exp(
        1.2 - 0.05 * n - 0.1 * d - 0.03 * r - 0.02 * s + 0.02 * n * n + 0.03 * d * d + 0.02 * n * d - 0.01 * s * r
    )


def trained(law, noise=0.0, seed=0):
    shapes = [
        shape(layers, width, expansion, *experts)
        for layers, width, expansion, experts in itertools.product(
            (2, 4, 8), (64, 128, 256), (2.0, 4.0), ((1, 1), (8, 1), (8, 2))
        )
    ]
    generator = np.random.default_rng(seed)
    return [(one, law(one) * math.exp(noise * generator.normal())) for one in shapes]


@pytest.mark.parametrize(("form", "law"), [("additive", additive), ("log_quadratic", quadratic)])
def test_exact_losses_are_recovered(form, law):
    found = fit(trained(law), form, VARIABLES, refits=20)
    for one in (shape(3, 100, 3.0, 8, 2), shape(16, 128, 2.0), shape(6, 400, 4.0, 8, 1)):
        low, high = found.interval(one)
        # The additive form's two-valued expansion is met between its values by a curve that two points leave open.
        assert found.predict(one) == pytest.approx(law(one), rel=2e-3 if form == "additive" else 1e-8)
        assert low <= found.predict(one) * (1 + 1e-6)
        assert high >= found.predict(one) * (1 - 1e-6)


VARIABLES = ("layers", "width", "expansion", "sparsity_factor")


@pytest.mark.parametrize(("truth", "form"), [(additive, "additive"), (quadratic, "log_quadratic")])
def test_held_out_models_choose_the_form(truth, form):
    found, errors = choose(trained(truth, 0.0005), VARIABLES)
    assert found.form == form
    assert set(errors) == {"additive", "log_quadratic"}
    assert errors[form] < 0.001
    assert errors[form] == min(errors.values())


def test_intervals_hold_new_models():
    """Over five draws of noise, of 20 new models at least 17 fall inside, and no interval is vacuous."""
    new = [shape(3, 90, 2.0), shape(6, 200, 4.0, 8, 1), shape(12, 128, 2.0, 8, 2), shape(4, 256, 4.0)]
    inside = 0
    for seed in range(5):
        found = fit(trained(additive, 0.003, seed), "additive", VARIABLES, refits=60)
        generator = np.random.default_rng(800 + seed)
        for one in new:
            low, high = found.interval(one)
            inside += low <= additive(one) * math.exp(0.003 * generator.normal()) <= high
            assert high - low < 0.06 * additive(one)
    assert inside >= 17


def test_quantities_that_move_together_are_refused():
    points = trained(additive)
    with pytest.raises(UserError, match="width and kv_width move together"):
        fit(points)
    separate = [
        (dataclasses.replace(one, kv_width=max(8, one.width // (1 + i % 3))), loss)
        for i, (one, loss) in enumerate(points)
    ]
    assert "kv_width" in fit(separate, refits=5).variables


def test_what_cannot_be_identified_is_refused():
    points = trained(quadratic)
    for listed, form, variables, reason in (
        (points[:5], "additive", VARIABLES, "5 constants; 5 models are too few"),
        (points[:8], "log_quadratic", VARIABLES, "combinations"),
        ([points[0]] * 20, "additive", VARIABLES, "same shape"),
        (points, "cubic", VARIABLES, "no form"),
        (points, "additive", ("depth",), "no quantity"),
        ([(one, -loss) for one, loss in points], "additive", VARIABLES, "positive"),
    ):
        with pytest.raises(UserError, match=reason):
            fit(listed, form, variables)
    # Layers and expansion never moved at once: their product is unknown.
    crossed = [(o, loss) for o, loss in points if o.layers == 4 or (o.expansion == 2.0 and o.width == 64)]
    with pytest.raises(UserError, match=r"too few|combinations"):
        fit(crossed, "log_quadratic", VARIABLES)


def test_shapes_that_nobody_trained_are_refused():
    found = fit(trained(additive), "additive", VARIABLES, refits=5)
    assert found.covers(shape(16, 512, 2.0))
    for far, name in (
        (shape(17, 128), "layers"),
        (shape(4, 30), "width"),
        # Two values of expansion were trained: nothing beyond them.
        (shape(4, 128, 5.0), "expansion"),
        (shape(4, 128, 4.0, 64, 1), "sparsity_factor"),
    ):
        assert not found.covers(far)
        with pytest.raises(UserError, match=f"A {name} of"):
            found.predict(far)
    # A quantity that no model varied.
    same = [(one, loss) for one, loss in trained(additive) if one.expansion == 4.0]
    with pytest.raises(UserError, match="A expansion of 2"):
        fit(same, "additive", VARIABLES, refits=5).predict(shape(4, 128, 2.0))


def candidates(count=200, seed=0):
    generator = np.random.default_rng(seed)
    rows = generator.uniform(size=(count, 3))
    return [Candidate(shape(2, 64), *row) for row in rows]


def test_nothing_beats_the_frontier():
    offered = candidates()
    kept = frontier(offered)
    for one in kept:
        assert not any(
            other.loss <= one.loss
            and other.seconds <= one.seconds
            and (other.loss, other.seconds) != (one.loss, one.seconds)
            for other in offered
        )
    # And everything else is beaten.
    for one in offered:
        assert one in kept or any(k.loss <= one.loss and k.seconds <= one.seconds for k in kept)
    assert [one.seconds for one in kept] == sorted(one.seconds for one in kept)
    worse = Candidate(shape(2, 64), kept[2].loss + 0.01, kept[2].seconds + 0.01, 0.0)
    assert frontier([*offered, worse]) == kept
    assert frontier([*offered, kept[1]]) == kept
    assert frontier(offered[::-1]) == kept


def test_limits():
    offered = candidates()
    losses = [best(offered, seconds).loss for seconds in (1.0, 0.5, 0.2, 0.1)]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]
    small = [best(offered, bytes=limit).loss for limit in (1.0, 0.3, 0.05)]
    assert small == sorted(small)
    assert all(one.bytes <= 0.3 and one.seconds <= 0.5 for one in frontier(offered, 0.5, 0.3))
    with pytest.raises(UserError, match="None of 200 shapes"):
        best(offered, seconds=1e-9)


def test_codesign_prefers_sparse_models_at_one_token_a_time():
    """Batch one, a loss that falls with sparsity: whatever the limit, the best shape is a mixture of experts.

    Up to what its router costs: a dense twin reads up to three thousandths less.
    """
    law = fit(trained(additive), "additive", VARIABLES, refits=5)
    shapes = [
        shape(layers, width, 4.0, *experts)
        for layers, width, experts in itertools.product((2, 4, 8, 16), (64, 128, 256, 512), ((1, 1), (8, 1), (8, 2)))
    ]
    offered = price(shapes, law, MACHINE, Workload(1, 16), Precision())
    kept = frontier(offered)
    assert len(kept) > 10
    assert all(best(offered, 1.005 * one.seconds).architecture.experts == 8 for one in kept)
    assert best(offered, bytes=min(one.bytes for one in offered) * 1.01).architecture.experts == 1
    tight = best(offered, seconds=np.median([one.seconds for one in offered]))
    assert tight.loss > best(offered).loss


def test_refits_can_be_left_out():
    found = fit(trained(additive), "additive", VARIABLES, refits=0)
    assert isinstance(found.fit, robust.RobustFit)
    assert found.fit.refits.shape == (0, 9)
