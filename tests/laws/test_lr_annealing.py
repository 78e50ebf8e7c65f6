"""The annealing law: the published fit again, constants recovered, refusals with a reason, intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.signal import lfilter

from thalweg.errors import UserError
from thalweg.laws import annealing_fit
from thalweg.laws.annealing_evidence import chain, resampled
from thalweg.laws.annealing_features import averaged, carried
from thalweg.laws.lr_annealing import (
    LAW_ERROR,
    MOMENTA,
    RESIDUAL_ERROR,
    AnnealingLaw,
    Curve,
    features,
    fit,
    warmup_steps,
)

# Losses every 1000 steps of the released example: 20000 steps, peak 2e-4, warm-up 500, cosine to 0 and constant.
COSINE = (
    "3.66964 3.32541 3.19084 3.11585 3.06048 3.02038 2.98810 2.96123 2.93952 2.91956 "
    "2.90305 2.88819 2.87679 2.86543 2.85651 2.84899 2.84364 2.83987 2.83806 2.83761"
)
CONSTANT = (
    "3.67144 3.32563 3.18841 3.11195 3.05835 3.02114 2.98748 2.96082 2.94066 2.92414 "
    "2.90544 2.89421 2.88079 2.87027 2.86218 2.85310 2.84488 2.83839 2.83270 2.82943"
)

# A short run of ours: 1000 steps, warm-up 50.
T, W = 1000, 50
STEP = np.arange(1, T + 1)
_LATE = np.clip((STEP - W) / (T - W), 0, 1)
_RISE = np.minimum(STEP / W, 1)
SCHEDULES = {
    "cosine": 0.01 * _RISE * 0.5 * (1 + np.cos(np.pi * _LATE)),
    "wsd": 0.01 * _RISE * np.clip((1 - STEP / T) / 0.2, 0, 1),
    "linear": 0.01 * _RISE * (1 - _LATE),
    "constant": 0.01 * _RISE,
}
PLACES = np.arange(100, T + 1, 25)
TRUTH = AnnealingLaw(1.6, 2.0, 0.45, 0.5, momentum=0.98)


def published():
    """Cosine and constant; index 0 is a step, too, so that 1001 steps have been taken at the first loss."""
    index = np.arange(20001)
    wave = np.pi * (index - 500) / 19500
    cosine = np.where(index <= 500, 2e-4, 1e-4 * (1 + np.cos(wave)))
    taken = np.arange(1000, 20001, 1000) + 1
    losses = [np.array([float(word) for word in words.split()]) for words in (COSINE, CONSTANT)]
    return Curve(cosine, taken, losses[0]), Curve(np.full(20001, 2e-4), taken, losses[1])


def curve(name, law=TRUTH, noise=0.0, seed=0, places=PLACES, chained=0.0):
    generator = np.random.default_rng(seed)
    errors = lfilter([1], [1, -chained], generator.normal(size=len(places))) * np.sqrt(1 - chained**2)
    losses = law.predict(SCHEDULES[name], places, W - 1) * np.exp(noise * errors)
    return Curve(SCHEDULES[name], places, losses, W - 1)


# -- features -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("momentum", "annealed"),
    [
        (0.0, [0, 0, 0.5, 0.5, 1]),
        (0.5, [0, 0, 0.5, 0.75, 1.375]),
        (0.9, [0, 0, 0.5, 0.95, 1.855]),
        (1.0, [0, 0, 0.5, 1, 2]),
    ],
)
def test_small_features(momentum, annealed):
    walk, found = features([1, 1, 0.5, 0.5, 0], momentum)
    assert walk == pytest.approx([1, 2, 2.5, 3, 3])
    assert found == pytest.approx(annealed, abs=1e-12)


def test_published_features():
    cosine, constant = published()
    walk, annealed = features(cosine.rates)
    assert walk[-1] == pytest.approx(2.0501, abs=5e-5)
    assert annealed[-1] == pytest.approx(0.197474, abs=5e-7)
    walk, annealed = features(constant.rates)
    assert walk[-1] == pytest.approx(4.0002, abs=5e-5)
    assert not annealed.any()


def test_a_constant_rate_is_a_power_law():
    law = AnnealingLaw(2.0, 3.0, 0.5, 0.7)
    assert law.predict(np.full(100, 0.1)) == pytest.approx(2.0 + 3.0 * (0.1 * STEP[:100]) ** -0.5, rel=1e-12)


def test_without_momentum_annealing_is_the_distance_fallen():
    rates = np.random.default_rng(0).uniform(0.1, 1.0, 50)
    assert features(rates, 0.0)[1] == pytest.approx(rates[0] - rates, abs=1e-12)


def test_a_single_fall_saturates():
    rates = np.where(np.arange(20000) < 10, 1.0, 0.9)
    since = np.arange(20000) - 9
    expected = np.where(since > 0, 0.1 * (1 - 0.999 ** np.maximum(since, 0)) / (1 - 0.999), 0.0)
    found = features(rates)[1]
    assert found == pytest.approx(expected, abs=1e-8)
    assert found[-1] == pytest.approx(1000 * 0.1, rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98, 0.999, 1.0])
def test_carried_is_the_recurrence(share):
    values = np.random.default_rng(0).normal(size=(2, 3000))
    assert carried(values, share) == pytest.approx(lfilter([1.0], [1.0, -share], values), abs=1e-11)


def test_warm_up_is_no_annealing_undone():
    rates = SCHEDULES["wsd"]
    assert warmup_steps(rates) == W - 1
    flat, area = (features(rates, 0.999, W - 1, convention) for convention in ("flat", "area"))
    assert flat[1][: int(0.8 * T)] == pytest.approx(0.0, abs=1e-15)
    assert (flat[1] == area[1]).all()
    # Flat adds the triangle above the rise: 0.01 * (1 + ... + 49) / 50.
    assert flat[0][-1] - area[0][-1] == pytest.approx(0.01 * 24.5)
    assert features(rates, 0.999)[1][W] < 0  # what the conventions are there for


def test_training_losses_are_averaged_where_they_were_measured():
    steps = np.arange(1, 101)
    places, means = averaged(steps, steps.astype(float), 4)
    assert places[0] == 5  # the 6th step's loss came after 5 steps
    assert means[0] == 6.0
    assert means == pytest.approx(places + 1, abs=0.51)
    assert np.diff(places).max() <= 2
    with_gap = np.where(steps == 50, np.nan, 1.0)
    assert np.isfinite(averaged(steps, with_gap, 4)[1]).all()
    assert len(averaged(steps[:3], np.ones(3), 4)[0]) == 0


# -- the fit ------------------------------------------------------------------------------------------------------


def test_published_fit():
    law = fit(published())
    assert pytest.approx(2.62780, abs=2e-5) == law.L0
    assert pytest.approx(0.42967, abs=2e-5) == law.A
    assert pytest.approx(0.41077, abs=2e-5) == law.C
    assert law.alpha == pytest.approx(0.54985, abs=2e-5)
    assert law.objective == pytest.approx(1.6292e-5, rel=1e-4)
    losses = np.concatenate([one.losses for one in published()])
    fitted = np.concatenate([law.predict(one.rates, one.steps) for one in published()])
    assert 1 - ((losses - fitted) ** 2).sum() / ((losses - losses.mean()) ** 2).sum() == pytest.approx(
        0.99963, abs=5e-6
    )
    errors = np.abs(losses - fitted)
    assert errors.max() == pytest.approx(0.0143, abs=1e-4)
    assert errors.argmax() == 1  # the cosine's second loss


def test_gradient():
    walk, annealed = np.linspace(0.2, 4, 30), np.linspace(0, 0.3, 30) ** 2
    theta = np.array([2.0, 0.6, 0.5, 0.4])
    loss = np.log(annealing_fit.predict(theta[None], walk, annealed)[0]) + 0.01 * np.sin(np.arange(30))
    moved = theta * 1.02
    found = annealing_fit.objective(moved, walk, annealed, loss, 1e-3)[1]
    numeric = approx_fprime(moved, lambda t: annealing_fit.objective(t, walk, annealed, loss, 1e-3)[0], 1e-8)
    assert found == pytest.approx(numeric, rel=1e-4)


@pytest.mark.parametrize("names", [("cosine", "wsd"), ("cosine", "constant"), ("linear", "wsd"), ("cosine",)])
def test_exact_curves_give_the_constants_and_every_other_curve(names):
    law = fit([curve(name) for name in names], momenta=(0.98,))
    assert law.theta == pytest.approx(TRUTH.theta, rel=2e-3)
    for name, rates in SCHEDULES.items():
        assert law.predict(rates, PLACES, W - 1) == pytest.approx(curve(name).losses, rel=1e-5)


def test_the_unit_of_the_rate_goes_into_the_constants():
    exact = [curve(name) for name in ("cosine", "wsd")]
    law = fit([Curve(one.rates * 1000, one.steps, one.losses, one.warmup) for one in exact], momenta=(0.98,))
    assert law.theta == pytest.approx([1.6, 2.0 * 1000**0.45, 0.45, 0.5 / 1000], rel=2e-3)


def test_momentum_and_convention_are_chosen_on_the_curves():
    for momentum, convention in ((0.99, "area"), (0.98, "flat")):
        truth = AnnealingLaw(1.6, 2.0, 0.45, 0.5, momentum=momentum, convention=convention)
        curves = [curve(name, truth, noise=2e-4, seed=seed) for seed, name in enumerate(("cosine", "wsd"))]
        law = fit(curves, MOMENTA, ("flat", "area"))
        assert (law.momentum, law.convention) == (momentum, convention)


def test_spikes_hardly_move_it():
    curves = [curve(name, noise=1e-3, seed=seed) for seed, name in enumerate(("cosine", "wsd"))]
    clean = fit(curves, momenta=(0.98,)).predict(SCHEDULES["linear"], [T], W - 1)
    for one in curves:
        one.losses[[5, 20]] *= 1.3
        one.losses[9] = np.nan
    assert fit(curves, momenta=(0.98,)).predict(SCHEDULES["linear"], [T], W - 1) == pytest.approx(clean, rel=2e-3)


def test_losses_inside_the_warm_up_do_not_count():
    early = np.concatenate([[10, 30], PLACES])
    one, other = (curve(name) for name in ("cosine", "wsd"))
    spoilt = Curve(one.rates, early, np.concatenate([[9.0, 8.0], one.losses]), one.warmup)
    assert (fit([spoilt, other], momenta=(0.98,)).theta == fit([one, other], momenta=(0.98,)).theta).all()


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curves", "reason"),
    [
        ([], "at least 8"),
        ([curve("cosine", places=PLACES[::6])], "at least 8"),
        ([curve("constant")], "never falls"),
        ([curve("wsd", places=PLACES[PLACES < 790])], "never falls"),
        ([curve("cosine", places=np.arange(600, 1000, 10))], "too short"),
        ([curve("cosine", noise=0.05)], "cannot tell annealing from mere progress"),
        ([Curve(SCHEDULES["cosine"], PLACES, np.linspace(2, 4, len(PLACES)), W - 1)], "do not fall"),
        ([Curve(SCHEDULES["cosine"], PLACES[:-1], np.ones(len(PLACES)), W - 1)], "do not fit"),
        ([Curve(SCHEDULES["cosine"], PLACES + 500, np.ones(len(PLACES)), W - 1)], "in 1..1000"),
        ([Curve(-SCHEDULES["cosine"], PLACES, np.ones(len(PLACES)), W - 1)], "none below 0"),
    ],
)
def test_refuses(curves, reason):
    with pytest.raises(UserError, match=reason):
        fit(curves, MOMENTA)


def test_annealing_that_is_worth_nothing_is_an_answer():
    """Known to be small is not the same as unknown."""
    free = AnnealingLaw(1.6, 2.0, 0.45, 0.0, momentum=0.98)
    law = fit([curve(name, free, noise=1e-3, seed=seed) for seed, name in enumerate(("cosine", "wsd"))])
    assert law.predict(SCHEDULES["linear"], [T], W - 1) == pytest.approx(
        free.predict(SCHEDULES["linear"], [T], W - 1), rel=5e-3
    )


def test_intervals_need_refits():
    law = fit([curve("cosine"), curve("wsd")], momenta=(0.98,))
    with pytest.raises(UserError, match="no refits"):
        law.intervals()
    with pytest.raises(UserError, match=r"1\.\.1000"):
        law.predict(SCHEDULES["cosine"], [1001])


# -- uncertainty --------------------------------------------------------------------------------------------------


def test_resampled_errors_look_like_those_that_were_seen():
    generator = np.random.default_rng(0)
    parts = [lfilter([0.8], [1, -0.6], generator.normal(size=400)) for _ in range(2)]
    assert chain(parts) == pytest.approx(0.6, abs=0.06)
    drawn = resampled(parts, None, 300, generator)
    assert drawn.shape == (300, 800)
    assert drawn.std() == pytest.approx(np.concatenate(parts).std(), rel=0.05)
    assert (drawn[:, 1:400] * drawn[:, :399]).mean() / drawn.var() == pytest.approx(0.6, abs=0.06)
    # Curves err independently.
    assert abs((drawn[:, 399] * drawn[:, 400]).mean() / drawn.var()) < 0.15
    assert not resampled([np.zeros(20)], None, 5, generator).any()


@pytest.mark.parametrize("chained", [0.0, 0.5])
def test_intervals_cover_at_their_nominal_rate(chained):
    """80% intervals of the constants and of an unseen schedule's end, and 80% bands of an unseen curve."""
    repeats, hits, inside = 36, np.zeros(5), []
    for seed in range(repeats):
        curves = [
            curve(name, noise=3e-3, seed=100 * seed + place, chained=chained)
            for place, name in enumerate(("cosine", "wsd"))
        ]
        law = fit(curves, momenta=(0.98,), bootstrap=80, seed=seed)
        for place, (low, high) in enumerate(law.intervals(0.8).values()):
            hits[place] += low <= TRUTH.theta[place] <= high
        low, high = np.quantile(law.samples(SCHEDULES["linear"], [T], W - 1), [0.1, 0.9])
        hits[4] += low <= TRUTH.predict(SCHEDULES["linear"], [T], W - 1)[0] <= high
        unseen = curve("linear", noise=3e-3, seed=100 * seed + 50, chained=chained)
        low, high = law.band(unseen.rates, unseen.steps, W - 1, 0.8, law_error=0.0)
        inside.append(((low <= unseen.losses) & (unseen.losses <= high)).mean())
    # Two and a half standard errors of a share of 0.8 among 36 are 0.17; the five quantities go along together.
    assert (hits / repeats > 0.62).all()
    assert 0.68 < hits.mean() / repeats < 0.92
    assert 0.74 < np.mean(inside) < 0.88


def test_the_band_holds_noise_and_the_laws_own_error():
    curves = [curve(name, noise=2e-3, seed=seed) for seed, name in enumerate(("cosine", "wsd"))]
    law = fit(curves, momenta=(0.98,), bootstrap=60)
    rates = SCHEDULES["linear"]

    def width(**said):
        low, high = law.band(rates, [T], W - 1, **said)
        return float(high[0] - low[0])

    assert width(noise=0.0, law_error=0.0) < width(law_error=0.0) < width()
    assert width(noise=0.0, law_error=0.02) == pytest.approx(
        2 * 1.96 * 0.02 * TRUTH.predict(rates, [T], W - 1)[0], rel=0.1
    )


def test_the_laws_own_error_grows_with_what_it_leaves_of_the_curves():
    clean = [curve(name) for name in ("cosine", "wsd")]
    assert fit(clean, (0.98,)).law_error == LAW_ERROR[1]
    noisy = fit([curve(name, noise=5e-3, seed=seed) for seed, name in enumerate(("cosine", "wsd"))], (0.98,))
    assert noisy.law_error == RESIDUAL_ERROR[1] * noisy.residuals.std()
    assert noisy.law_error == pytest.approx(0.015, rel=0.2)
    alone, seeds = [curve("cosine")], [curve("cosine", noise=1e-4, seed=seed) for seed in (0, 1)]
    assert fit(alone, (0.98,)).law_error == fit(seeds, (0.98,)).law_error == LAW_ERROR[0]


def test_the_same_seed_gives_the_same_refits():
    curves = [curve(name, noise=2e-3, seed=seed) for seed, name in enumerate(("cosine", "wsd"))]
    first, again, other = (fit(curves, MOMENTA, bootstrap=10, seed=seed) for seed in (1, 1, 2))
    assert (first.refits == again.refits).all()
    assert (first.refits != other.refits).any()
    assert set(first.candidates) <= {(momentum, "flat") for momentum in MOMENTA}
