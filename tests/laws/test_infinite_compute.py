"""Laws at infinite compute: the paper's numbers, exact curves, noise, and what must be refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from thalweg.errors import UserError
from thalweg.laws import asymptote
from thalweg.laws.asymptote import AsymptoteLaw
from thalweg.laws.infinite_compute import (
    REGULARISED,
    certificate,
    data_efficiency,
    distillation_steps,
    ensemble,
    fit_joint,
    gain_kept,
    member_settings,
)

SIZES = np.array([0.15, 0.3, 0.6, 1.4])
FIRST, SECOND = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.6, 0.3])


def noisy(law, x, noise, seed):
    return np.column_stack([x, law.predict(x) * np.exp(noise * np.random.default_rng(seed).normal(size=len(x)))])


def test_an_ensemble_averages_logits():
    found = ensemble(np.log([FIRST, SECOND]))
    assert np.exp(found) == pytest.approx([0.337386, 0.441742, 0.220871], abs=5e-7)
    normaliser = np.sqrt(FIRST * SECOND).sum()
    assert normaliser == pytest.approx(0.784190, abs=5e-7)
    assert np.exp(found) != pytest.approx((FIRST + SECOND) / 2, abs=0.01)
    # Every label: the members' mean loss plus log Z, never worse than the mean member.
    mean_loss = -np.log([FIRST, SECOND]).mean(axis=0)
    assert -found == pytest.approx(mean_loss + math.log(normaliser), rel=1e-12)
    assert math.log(normaliser) == pytest.approx(-0.243103, abs=5e-7)


def test_identical_members_and_one_member_change_nothing():
    logits = np.random.default_rng(0).normal(size=(4, 7))
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    assert ensemble(np.stack([logits])) == pytest.approx(logs, abs=1e-12)
    assert ensemble(np.stack([logs] * 5)) == pytest.approx(logs, abs=1e-12)
    # Logits with any constant added a row are the same member.
    assert ensemble(np.stack([logits + 3.0, logits - 900.0])) == pytest.approx(logs, abs=1e-10)


def test_published_law():
    assert REGULARISED.predict(SIZES) == pytest.approx([3.776, 3.601, 3.514, 3.465], abs=6e-4)
    assert REGULARISED.predict(math.inf) == 3.43
    with pytest.raises(UserError, match="no interval"):
        REGULARISED.interval(1.0)


def test_exact_curves_are_recovered():
    members = np.arange(1, 6)
    law = asymptote.fit(np.column_stack([members, 3.34 + 0.23 / members]))
    assert (law.A, law.alpha, law.E) == pytest.approx((0.23, 1.0, 3.34), rel=1e-8)
    law = asymptote.fit(np.column_stack([SIZES, REGULARISED.predict(SIZES)]))
    assert (law.A, law.alpha, law.E) == pytest.approx((0.05, 1.02, 3.43), rel=1e-8)
    assert law.interval(3.2) == pytest.approx((law.predict(3.2),) * 2, rel=1e-6)
    # Tokens in ones instead of billions: another A, the same law.
    counted = asymptote.fit(np.column_stack([SIZES * 1e9, REGULARISED.predict(SIZES)]))
    assert counted.predict(3.2e9) == pytest.approx(law.predict(3.2), rel=1e-9)
    assert counted.to_dict()["E"] == pytest.approx(3.43, rel=1e-8)


def test_the_paper_s_least_squares_agrees():
    """Its curve_fit on raw loss (start 1, 0.5, 2; bounds above 0) beside ours, with errors of two thousandths."""
    x = np.array([0.15, 0.2, 0.3, 0.45, 0.6, 0.9, 1.4, 2.0])
    points = noisy(REGULARISED, x, 0.0005, 3)
    theirs, _ = curve_fit(lambda n, A, alpha, E: A / n**alpha + E, *points.T, p0=(1, 0.5, 2), bounds=(0, np.inf))
    ours = asymptote.fit(points)
    assert pytest.approx(theirs[2], abs=0.004) == ours.E
    assert ours.predict(3.2) == pytest.approx(theirs[0] / 3.2 ** theirs[1] + theirs[2], abs=0.004)


def test_intervals_hold_new_runs_and_the_end():
    """Of 40 noisy fits on six sizes at least 35 hold a run at twice the largest; as many hold E; none is vacuous."""
    truth, sizes = AsymptoteLaw(0.05, 0.8, 3.43), np.array([0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
    runs, ends = 0, 0
    for seed in range(40):
        law = asymptote.fit(noisy(truth, sizes, 0.001, seed), refits=100)
        low, high = law.interval(6.4)
        new = truth.predict(6.4) * np.exp(0.001 * np.random.default_rng(900 + seed).normal())
        bottom, top = law.asymptote_interval()
        runs, ends = runs + (low <= new <= high), ends + (bottom <= 3.43 <= top)
        assert high - low < 0.15
    assert runs >= 35
    assert ends >= 35


def test_a_known_spread_narrows_what_four_points_say():
    """One point to spare says next to nothing about its own noise; other seeds do."""
    known, guessed = [], []
    for seed in range(6):
        points = noisy(REGULARISED, SIZES, 0.002, seed)
        law = asymptote.fit(points, spread=0.002, refits=100)
        known.append(law.asymptote_interval())
        assert known[-1][0] < 3.43 < known[-1][1]
        assert law.interval(3.2, level=0.5)[0] > law.interval(3.2, level=0.99)[0]
        try:
            guessed.append(asymptote.fit(points, refits=100).asymptote_interval())
        except UserError:
            guessed.append((0.0, 3.5))
    assert max(np.ptp(known, axis=1)) < 0.1
    assert np.median(np.ptp(guessed, axis=1)) > 3 * np.median(np.ptp(known, axis=1))
    with pytest.raises(UserError, match="leave open"):
        asymptote.fit(noisy(REGULARISED, SIZES, 0.002, 6))


def test_an_outlier_hardly_moves_the_end():
    x = np.repeat(SIZES, 3)
    points = noisy(REGULARISED, x, 0.0005, 0)
    clean = asymptote.fit(points)
    points[4, 1] *= 1.3
    assert pytest.approx(clean.E, abs=0.01) == asymptote.fit(points).E


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([(0.1, 3.9), (0.2, 3.7), (0.4, 3.6)], "4 different x"),
        ([(0.1, 3.9)] * 9, "4 different x"),
        ([(0.15, 3.76), (0.3, 3.65), (0.6, 3.75), (1.4, 3.9)], "keep falling"),
        ([(1, 3.0), (2, 3.1), (3, 3.2), (4, 3.3)], "keep falling"),
        ([(1, 3.0), (2, 2.9), (4, 2.81), (8, np.nan)], "finite"),
        ([(1, 3.0, 2)] * 5, "rows"),
        # Straight in log x with a little noise: no end in sight.
        ([(10.0**k, 4 - 0.4 * k + 0.01 * (-1) ** k) for k in range(6)], "levelling off"),
        # Bends, but too little for its noise.
        ([(2.0**k, 3 + 0.8**k + 0.02 * (-1) ** k) for k in range(6)], "leave open"),
    ],
)
def test_what_cannot_be_identified_is_refused(points, reason):
    with pytest.raises(UserError, match=reason):
        asymptote.fit(points)


def test_joint_limit():
    """L = 3.17 + .05 / N + (.1 + .05 / N) / K: ends C(N) = 3.17 + .05 / N, joint limit 3.17."""
    rows = [(n, k, 3.17 + 0.05 / n + (0.1 + 0.05 / n) / k) for n in SIZES for k in range(1, 6)]
    law = fit_joint(rows)
    assert pytest.approx(3.17, rel=1e-7) == law.E
    assert pytest.approx(3.17 + 0.05 / 0.3, rel=1e-8) == law.members[0.3].E
    table = np.array(rows)
    table[:, 2] *= np.exp(0.0003 * np.random.default_rng(1).normal(size=len(table)))
    low, high = fit_joint(table, spread=0.0003).asymptote_interval()
    assert low < 3.17 < high
    assert high - low < 0.1
    with pytest.raises(UserError, match="4 different x"):
        fit_joint(rows[:15])


def test_data_efficiency():
    law = AsymptoteLaw(1.2, 0.235, 1.93)
    for tokens in (0.2, 0.4, 1.6):
        assert law.inverse(law.predict(tokens)) == pytest.approx(tokens, rel=1e-12)
    assert data_efficiency(law.predict(0.2), law, law.predict(0.2)) == 1
    assert data_efficiency(law.predict(0.458), law, law.predict(0.2)) == pytest.approx(2.29, rel=1e-9)
    with pytest.raises(UserError, match="No amount"):
        law.inverse(1.93)


def test_certificate():
    best = (1e-3, 8, 0.8)
    around = [(3e-4, 8, 0.8), (3e-3, 8, 0.8), (1e-3, 4, 0.8), (1e-3, 16, 0.8), (1e-3, 8, 0.4), (1e-3, 8, 1.6)]
    losses = {best: 3.5} | dict.fromkeys(around, 3.6)
    found = certificate(losses)
    assert found.holds
    assert (found.best, found.loss) == (best, 3.5)
    losses.pop(around[3])
    losses[around[0]] = math.nan  # it diverged: it was run, and is not better
    assert certificate(losses).missing == (around[3],)
    assert not certificate(losses).holds
    assert certificate({(1e-4, 64, 0.8): 3.0}).open == ("lr", "epochs")
    with pytest.raises(UserError, match="not on the grid"):
        certificate({(2e-3, 8, 0.8): 3.0})
    with pytest.raises(UserError, match="finite"):
        certificate({best: math.nan})


def test_rules_of_the_recipe():
    assert member_settings(16, 1.6) == (32, 0.8)
    assert distillation_steps(800, 16, 0.5) == 25600
    assert distillation_steps(800, 16, 0.0) * (1 - 0) == 12800
    assert gain_kept(3.36, 3.57, 3.32) == pytest.approx(0.84)
    with pytest.raises(UserError, match="below 1"):
        distillation_steps(800, 16, 1.0)
