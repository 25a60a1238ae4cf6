"""Intervals: against scipy, a closed form, and what must not matter."""

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from uhr.models.metrics.features import Features
from uhr.models.metrics.sets import distances, jackknife
from uhr.train.evaluate.bootstrap import (
    difference,
    groups_of,
    interval,
    jackknife_difference,
    jackknife_interval,
    share_interval,
    student,
)


def test_the_interval_is_that_of_scipy_and_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = interval(values, np.arange(400), seed=3, resamples=4000)
    other = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=4)
    assert found.value == pytest.approx(values.mean())
    width = other.confidence_interval.high - other.confidence_interval.low
    assert found.low == pytest.approx(other.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(other.confidence_interval.high, abs=0.05 * width)
    assert width == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


def test_more_images_of_the_same_prompts_give_the_same_interval():
    values, prompts = np.random.default_rng(0).normal(size=30), np.arange(30)
    once = interval(values, prompts)
    again = interval(np.repeat(values, 4), np.repeat(prompts, 4))
    assert again == pytest.approx(once)
    # taken for independent, they would seem to be twice as certain
    independent = interval(np.repeat(values, 4), np.arange(120))
    assert independent.high - independent.low < 0.65 * (once.high - once.low)


def test_a_constant_difference_has_no_width_whatever_the_spread_of_both():
    a = np.random.default_rng(0).normal(0, 100, 50)
    found = difference(a, a + 1.5, np.arange(50))
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    assert found.clear
    assert found.wins == 1
    none = difference(a, a, np.arange(50))
    assert (none.value, none.clear, none.wins) == (0, False, 0.5)


def test_a_difference_is_that_of_resampled_prompts_not_of_two_independent_sets():
    rng = np.random.default_rng(2)
    a = rng.normal(0, 10, 60)
    b = a + rng.normal(0.5, 1, 60)
    found = difference(a, b, np.arange(60), resamples=4000)
    other = interval(b - a, np.arange(60), resamples=4000)
    assert (found.value, found.low, found.high) == pytest.approx(tuple(other))


def test_a_harmonic_mean_is_that_of_its_definition():
    values = np.array([1.0, 2.0, 4.0])
    found = interval(values, np.arange(3), "harmonic")
    assert found.value == pytest.approx(3 / (1 + 0.5 + 0.25))
    assert 1 <= found.low <= found.value <= found.high <= 4


def test_the_seed_decides_the_interval_and_one_prompt_has_none():
    values = np.random.default_rng(0).normal(size=20)
    prompts = np.arange(20)
    assert interval(values, prompts, seed=1) == interval(values, prompts, seed=1)
    assert interval(values, prompts, seed=1) != interval(values, prompts, seed=2)
    assert interval(values, np.zeros(20, int)).low is None
    assert difference(values, values + 1, np.zeros(20, int)).clear is False


def test_of_few_prompts_no_difference_is_called_clear():
    """Five differences of one sign come by chance in one case of 16, and have an interval that excludes 0."""
    for prompts, clear in ((2, False), (5, False), (6, True)):
        found = difference(np.zeros(20), np.ones(20) + np.arange(20) / 9, np.arange(20) % prompts)
        assert found.low > 0
        assert (found.prompts, found.clear) == (prompts, clear)


def test_the_jackknife_of_means_is_students_interval_of_paired_differences():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 10, 20)
    b = a + rng.normal(1, 1, 20)
    groups = groups_of(np.arange(20))
    without = [[values[groups != group].mean() for group in range(20)] for values in (a, b)]
    found = jackknife_difference(a.mean(), b.mean(), *without)
    expected = scipy.stats.ttest_1samp(b - a, 0).confidence_interval(0.95)
    assert found.value == pytest.approx((b - a).mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-4)
    assert (found.clear, found.wins) == (True, None)


def test_students_factor_is_that_of_scipy():
    for degrees in (2, 3, 5, 19):
        assert student(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=0.01)


@pytest.mark.parametrize(("count", "total"), [(0, 6), (6, 6), (1, 1), (3, 20), (140, 200)])
def test_the_interval_of_a_share_is_that_of_scipy_and_never_has_no_width(count, total):
    found = share_interval(count, total)
    expected = scipy.stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert tuple(found) == pytest.approx((count / total, *expected))
    assert found.high - found.low > 0.1


def test_the_images_of_a_prompt_are_in_one_group():
    prompts = np.repeat(np.arange(10, 60), 3)
    groups = groups_of(prompts)
    assert {len(set(groups[prompts == prompt])) for prompt in prompts} == {1}
    assert set(groups) == set(range(20))
    assert groups_of(np.array([4, 4, 7])) is None
    assert list(groups_of(np.array([4, 7, 9, 4]))) == [0, 1, 2, 0]


def test_a_weight_counts_an_image_as_often_as_it_says():
    rng = np.random.default_rng(0)
    a, b, weights = rng.normal(size=(2, 40)), rng.normal(size=40), rng.integers(0, 4, 40)
    prompts = np.arange(40) // 2
    many = np.repeat(prompts, weights)
    for one in a:
        found = interval(one, prompts, weights=weights.astype(float))
        assert found == pytest.approx(interval(np.repeat(one, weights), many))
        compared = difference(one, b, prompts, weights=(weights.astype(float),) * 2)
        assert compared == pytest.approx(difference(np.repeat(one, weights), np.repeat(b, weights), many))


def test_the_jackknife_interval_of_a_mean_is_students():
    values = np.random.default_rng(4).normal(3, 2, 15)
    without = [np.delete(values, at).mean() for at in range(15)]
    found = jackknife_interval(values.mean(), without)
    low, high = scipy.stats.t.interval(0.95, 14, values.mean(), scipy.stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)
    assert jackknife_interval(1.5, None) == (1.5, None, None)


def test_the_interval_of_a_frechet_distance_contains_its_mean_and_resampled_sets_are_farther():
    """A set with images twice is narrower: a bootstrap's interval would be above the value."""
    rng = np.random.default_rng(5)
    reference = _features(rng.normal(size=(60, 16)))
    values, inside, farther = [], [], []
    for _ in range(25):
        rows = rng.normal(0.3, 1.2, (24, 16))
        generated = _features(rows)
        values.append(distances.frechet(reference, generated, "features").value)
        without = jackknife.frechet(reference, generated, "features", groups_of(np.arange(24)))
        inside.append(jackknife_interval(values[-1], without)[1:])
        drawn = _features(rows[rng.integers(0, 24, 24)])
        farther.append(distances.frechet(reference, drawn, "features").value - values[-1])
    mean = np.mean(values)
    assert np.mean([low <= mean <= high for low, high in inside]) >= 0.9
    assert min(farther) > 0
    assert np.mean(farther) > 2 * np.std(values)


def _features(rows):
    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float32).ravel()), rows.shape[1])
    return Features(
        pa.table({"index": pa.array(range(len(rows))), "features": values}), {"extractor": "rows"}
    )


def test_a_difference_of_weighted_means_has_the_weights_of_each():
    rng = np.random.default_rng(0)
    a, b, prompts = rng.normal(size=40), rng.normal(5, 1, 40), np.arange(40) // 2
    one, other = rng.integers(1, 4, 40), rng.integers(1, 9, 40)
    found = difference(a, b, prompts, weights=(one.astype(float), other.astype(float)))
    assert found.value == pytest.approx(np.average(b, weights=other) - np.average(a, weights=one))
    drawn = [
        interval(values, prompts, weights=weights.astype(float)).value
        for values, weights in ((a, one), (b, other))
    ]
    assert found.value == pytest.approx(drawn[1] - drawn[0])
    # values that are all the same have no spread, whatever their weights
    flat = difference(a * 0, a * 0 + 1, prompts, weights=(one.astype(float), other.astype(float)))
    assert (flat.value, flat.low, flat.high) == pytest.approx((1, 1, 1))


def test_an_image_without_a_value_is_in_no_mean_and_in_no_difference_with_one():
    rng = np.random.default_rng(1)
    a, b, prompts = rng.normal(size=30), rng.normal(size=30), np.arange(30)
    lacks_a, lacks_b = np.arange(30) < 4, (np.arange(30) >= 3) & (np.arange(30) < 9)
    with_gaps = np.where(lacks_a, np.nan, a), np.where(lacks_b, np.nan, b)
    assert interval(with_gaps[0], prompts) == interval(a[~lacks_a], prompts[~lacks_a])
    both = ~lacks_a & ~lacks_b
    found = difference(*with_gaps, prompts)
    assert found == difference(a[both], b[both], prompts[both])
    assert found.prompts == 21
    assert difference(np.where(lacks_a, a, np.nan), with_gaps[0], prompts) is None
