"""Data filtering: the sheet's numbers, the identities of unions, the fit, and what must be refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thalweg.errors import UserError
from thalweg.laws.data_filtering import Bucket, FilteringLaw, fit, released

ONE = FilteringLaw((Bucket(-0.1, 3.0),), 1e6, a=0.02, d=0.1)
THREE = FilteringLaw((Bucket(-0.18, 3), Bucket(-0.15, 3), Bucket(-0.12, 3)), 1e6, a=1.0, d=0.1, unit=1e3)
SEEN = (5e5, 1e6, 2e6, 3.5e6, 1e7)
# Four buckets as the authors' program fitted them on its data (utility form, unit 1e5), bucket of 12.8M samples.
TMARS = FilteringLaw(
    (Bucket(-0.16, 6.727), Bucket(-0.125, 8.545), Bucket(-0.1, 5.273), Bucket(-0.085, 2.273)), 12.8e6, a=0.025, d=0.1
)


def evaluations(law, epochs=(0.5, 1, 2, 4, 6, 8, 10), noise=0.0, seed=0):
    rows = [
        (bucket, n * law.bucket_size, law.predict(n * law.bucket_size, [bucket]))
        for bucket in range(len(law.buckets))
        for n in epochs
    ]
    table = np.array(rows)
    table[:, 2] *= np.exp(noise * np.random.default_rng(seed).normal(size=len(table)))
    return table


def test_utility_by_number():
    assert [ONE.predict(n, [0]) for n in SEEN] == pytest.approx(
        [1.358925, 1.274619, 1.211743, 1.175385, 1.142611], abs=6e-7
    )


def test_the_released_variant_by_number():
    found = [released(n, ONE.buckets[0], 1e6, 0.02, 0.1) for n in SEEN]
    assert found == pytest.approx([1.358925, 1.274619, 1.206390, 1.166936, 1.131373], abs=6e-7)
    # Alike within the first pass, and without an irreducible part.
    assert found[:2] == pytest.approx([ONE.predict(n, [0]) for n in SEEN[:2]], rel=1e-12)
    bare = FilteringLaw(ONE.buckets, 1e6, a=0.02, d=0.0)
    assert released(1e7, ONE.buckets[0], 1e6, 0.02, 0.0) == pytest.approx(bare.predict(1e7, [0]), rel=1e-12)


def test_data_that_never_wears_out():
    law = FilteringLaw((Bucket(-0.1, math.inf),), 1e6, a=0.02, d=0.1)
    for n in (3e5, 1e6, 7.3e6):
        assert law.predict(n, [0]) == pytest.approx((0.02 * n / 1e5) ** -0.1 + 0.1, rel=1e-12)


def test_identical_buckets_are_one_larger_bucket():
    twins = FilteringLaw((Bucket(-0.1, 3.0),) * 4, 1e6, a=0.02, d=0.1)
    large = FilteringLaw((Bucket(-0.1, 12.0),), 4e6, a=0.02, d=0.1)
    for n in (5e5, 4e6, 1.1e7, 9e7):
        assert twins.predict(n, range(4)) == pytest.approx(large.predict(n, [0]), rel=1e-12)
    assert twins.predict(9e5, range(4)) == pytest.approx(twins.predict(9e5, [2]), rel=1e-12)
    # Repeated, one bucket is worth less than four.
    assert twins.predict(8e6, range(4)) < twins.predict(8e6, [0])


@pytest.mark.parametrize(
    ("samples", "errors", "best"),
    [
        (2e6, (0.36121, 0.38532, 0.41978), 1),
        (8e6, (0.33404, 0.33629, 0.36337), 1),
        (16e6, (0.33146, 0.32195, 0.34298), 2),
        (64e6, (0.33121, 0.31269, 0.32114), 2),
    ],
)
def test_the_best_union_widens_with_the_budget(samples, errors, best):
    found = THREE.select(samples)
    assert found.errors == pytest.approx(errors, abs=6e-6)
    assert found.buckets == tuple(range(best))
    assert math.isnan(found.agreement)


def test_order_is_by_utility():
    mixed = FilteringLaw((THREE.buckets[2], THREE.buckets[0], THREE.buckets[1]), 1e6, a=1.0, d=0.1, unit=1e3)
    assert mixed.select(16e6).buckets == (1, 2)
    assert mixed.select(16e6).errors == pytest.approx(THREE.select(16e6).errors, rel=1e-12)


def test_error_falls_to_a_floor():
    errors = [THREE.predict(n, [0]) for n in np.geomspace(1e4, 1e9, 60)]
    assert (np.diff(errors) <= 0).all()
    assert THREE.predict(1e9, [0]) == pytest.approx(THREE.predict(2e8, [0]), rel=1e-12)
    assert THREE.predict(1e9, [0]) > 0.1 + 0.2


def test_exact_runs_are_recovered():
    law = fit(evaluations(TMARS), 12.8e6)
    assert (law.a, law.d) == pytest.approx((0.025, 0.1), rel=1e-4)
    for found, true in zip(law.buckets, TMARS.buckets, strict=True):
        assert (found.b, found.tau) == pytest.approx((true.b, true.tau), rel=1e-4)
    for samples in (32e6, 128e6, 640e6):
        assert law.select(samples).buckets == TMARS.select(samples).buckets
        assert law.predict(samples, [0, 1, 2]) == pytest.approx(TMARS.predict(samples, [0, 1, 2]), rel=1e-6)
        assert law.select(samples).agreement == 1.0


def test_unions_are_predicted_from_noisy_single_runs():
    """Errors of one in a thousand: unions that nobody trained are met within 2%, by intervals that are not vacuous."""
    inside, errors = 0, []
    for seed in range(6):
        law = fit(evaluations(TMARS, noise=0.001, seed=seed), 12.8e6, d=0.1, refits=60)
        for pool in ([0, 1], [0, 1, 2, 3]):
            truth = TMARS.predict(128e6, pool)
            low, high = law.interval(128e6, pool)
            inside += low <= truth <= high
            errors.append(abs(law.predict(128e6, pool) / truth - 1))
            assert high - low < 0.05 * truth
    assert max(errors) < 0.02
    assert inside >= 10


def test_an_outlier_hardly_moves_a_union():
    table = evaluations(TMARS, noise=0.0005)
    clean = fit(table, 12.8e6, d=0.1, refits=20)
    table[10, 2] *= 1.4
    bent = fit(table, 12.8e6, d=0.1, refits=20)
    assert bent.predict(128e6, [0, 1]) == pytest.approx(clean.predict(128e6, [0, 1]), rel=0.005)


def test_what_cannot_be_identified_is_refused():
    good = evaluations(THREE)
    for table, reason in (
        (evaluations(THREE, epochs=(0.2, 0.5, 0.7, 1.0)), "half-life cannot be told"),
        (evaluations(THREE, epochs=(1, 4)), "has 2 evaluations"),
        (evaluations(FilteringLaw(ONE.buckets, 1e6, 0.02, 0.1), epochs=(0.5, 1, 2)), "more than 3 points"),
        (np.vstack([good, [4, 1e6, 0.5]]), "without gaps"),
        (np.vstack([good, [1, 1e6, -0.5]]), "positive"),
        (good[:, :2], "rows"),
        # Nothing but noise about one level.
        (np.column_stack([good[:, :2], 0.4 + 0.01 * np.cos(np.arange(len(good)) * 2.0)]), "no more than its noise"),
        # Nine noisy points for eight constants.
        (evaluations(THREE, (0.5, 1, 2), noise=0.01, seed=2), "left open"),
    ):
        with pytest.raises(UserError, match=reason):
            fit(table, 1e6)
    with pytest.raises(UserError, match="below the lowest error"):
        fit(good, 1e6, d=0.6)
    for pool in ([], [3], [0, 0]):
        with pytest.raises(UserError, match="different buckets"):
            THREE.predict(1e6, pool)
    with pytest.raises(UserError, match="no interval"):
        THREE.interval(1e6, [0])
