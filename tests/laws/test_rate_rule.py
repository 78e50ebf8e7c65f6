"""The best rate and how it falls with width, from parabolas that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thalweg.errors import UserError
from thalweg.laws.rate_rule import Best, RateRule, best, fit

CARD = RateRule(0.02, 128, 0.5, "card")


def parabola(log_rate, curvature=0.05, floor=2.0):
    """Losses at rates about a best one."""
    return lambda rate: floor * math.exp(curvature * (math.log(rate) - log_rate) ** 2)


def curve(width, rule, noise=0.0, seed=0, steps=5, curvature=0.05):
    generator = np.random.default_rng(seed)
    loss = parabola(math.log(rule.at(width)), curvature)
    rates = [CARD.at(width) * 2.0**step for step in range(-(steps // 2), steps // 2 + 1)]
    return [(rate, loss(rate) * math.exp(noise * generator.normal())) for rate in rates]


def test_the_lowest_point_of_a_parabola():
    truth = RateRule(0.026, 128, 0.5)
    found = best(64, curve(64, truth))
    assert found.inside
    assert math.exp(found.log_rate) == pytest.approx(truth.at(64), rel=1e-6)
    assert best(64, curve(64, truth)[::-1]) == found


def test_its_error_is_that_of_many_draws():
    truth = RateRule(0.022, 128, 0.5)
    drawn = [best(128, curve(128, truth, 0.006, seed, curvature=0.03), spread=0.006) for seed in range(400)]
    assert np.std([one.log_rate for one in drawn]) == pytest.approx(np.mean([one.deviation for one in drawn]), rel=0.35)


def test_an_edge_and_a_diverged_neighbour():
    falling = [(0.01, 3.0), (0.02, 2.5), (0.04, 2.2)]
    edge = best(64, falling)
    assert (edge.inside, math.exp(edge.log_rate)) == (False, pytest.approx(0.04))
    assert edge.deviation == pytest.approx(math.log(2))
    blown = best(64, [*falling, (0.08, None)])
    assert (blown.inside, math.exp(blown.log_rate)) == (True, pytest.approx(0.04))
    with pytest.raises(UserError, match="No rate gave a finished run"):
        best(64, [(0.1, None)])


def test_the_exponent_is_recovered_where_widths_tell_it():
    truth = RateRule(0.03, 128, 1.0)
    rule = fit([best(width, curve(width, truth, 0.0005, width), spread=0.0005) for width in (64, 128, 256, 512)], CARD)
    assert rule.width_exponent == pytest.approx(1.0, abs=0.1)
    assert rule.at(128) == pytest.approx(0.03, rel=0.1)
    assert "measured" in rule.source


def test_the_card_is_kept_where_they_do_not():
    truth = RateRule(0.03, 128, 0.55)
    rule = fit([best(width, curve(width, truth, 0.004, width, 3)) for width in (64, 96)], CARD)
    assert rule.width_exponent == 0.5
    assert "kept" in rule.source
    assert rule.at(80) == pytest.approx(0.03 * (128 / 80) ** 0.5, rel=0.35)


def test_intervals_of_the_exponent_are_honest():
    """The card says the truth: it must be kept in nearly all draws, as a 95% interval has it."""
    kept = 0
    for seed in range(200):
        found = [best(width, curve(width, CARD, 0.004, [seed, width])) for width in (64, 128, 256)]
        kept += fit(found, CARD).width_exponent == 0.5
    assert kept >= 180


def test_one_width_gives_the_level():
    rule = fit([Best(64, math.log(0.04), 0.1, True)], CARD)
    assert rule.at(64) == pytest.approx(0.04, rel=5e-3)
    assert "one width only" in rule.source
    with pytest.raises(UserError, match="one width at least"):
        fit([], CARD)


def test_an_edge_is_told():
    assert "at width 64 the best rate lies at the edge" in fit([Best(64, -3.0, 0.7, False)], CARD).source
