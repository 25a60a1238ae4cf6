"""Intervals over prompts and training seeds cover what they say, and their parts are those of the model."""

import numpy as np
import pytest

from uhr.train.evaluate.experiments import variance


def drawn(rng, seeds, prompts, sd_seeds, sd_prompts, sd_rest, shared=None):
    """Scores of the model around a mean of 10; `shared` are the effects of prompts."""
    effects = rng.normal(0, sd_prompts, prompts) if shared is None else shared
    rest = rng.normal(0, sd_rest, (seeds, prompts))
    return 10 + rng.normal(0, sd_seeds, (seeds, 1)) + effects[None] + rest


@pytest.mark.parametrize(("degrees", "known"), [(1, 12.706205), (2, 4.302653), (5, 2.570582), (30, 2.042272)])
def test_quantiles_of_t_are_those_of_the_tables(degrees, known):
    assert variance.t_quantile(0.975, degrees) == pytest.approx(known, abs=1e-5)


def test_many_degrees_of_freedom_are_the_normal_distribution():
    assert variance.t_quantile(0.975, 1e9) == pytest.approx(1.959964, abs=1e-3)


@pytest.mark.parametrize(
    "sizes", [(2, 20, 1.0, 0.5, 0.5), (3, 20, 1.0, 0.5, 0.5), (3, 20, 0.0, 1.0, 1.0), (5, 10, 0.3, 1.0, 1.0)]
)
def test_the_interval_over_both_covers_the_mean_as_often_as_it_says(sizes):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        found = variance.mean_of(drawn(rng, *sizes), True)
        hits += found.both.low <= 10 <= found.both.high
    assert hits / 400 >= 0.92


def test_the_interval_over_prompts_alone_misses_the_mean_where_trainings_differ():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        found = variance.mean_of(drawn(rng, 3, 20, 1.0, 0.1, 0.1), True)
        hits += found.prompts.low <= 10 <= found.prompts.high
    assert hits / 200 < 0.3


def test_prompts_that_are_hard_for_both_arms_do_not_widen_a_difference():
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 50, 30)
    a = drawn(rng, 4, 30, 0.1, 0, 0.1, hard)
    b = drawn(rng, 4, 30, 0.1, 0, 0.1, hard) + 1
    found = variance.difference_of(a, b, (True, True))
    assert found.both.low < 1 < found.both.high
    assert found.both.high - found.both.low < 1
    alone = variance.mean_of(a, True).both
    assert alone.high - alone.low > 20


def test_equal_trainings_are_no_evidence_of_more_prompts():
    """Three trainings with the same scores are one: the interval is that over prompts."""
    scores = np.random.default_rng(3).normal(0, 1, (1, 12))
    one, three = variance.mean_of(scores, False), variance.mean_of(np.repeat(scores, 3, axis=0), True)
    assert three.both == pytest.approx(one.both)
    half = variance.t_quantile(0.975, 11) * scores.std(ddof=1) / np.sqrt(12)
    assert one.both.high - one.value == pytest.approx(half)


def test_deviations_are_those_that_the_scores_were_made_with():
    found = variance.deviations(drawn(np.random.default_rng(4), 300, 300, 2.0, 3.0, 0.5))
    assert found.seeds == pytest.approx(2.0, rel=0.1)
    assert found.prompts == pytest.approx(3.0, rel=0.1)
    assert found.residual == pytest.approx(0.5, rel=0.02)


def test_one_seed_is_reported_and_one_prompt_has_no_interval():
    scores = np.ones((1, 5)) + np.arange(5)
    assert not variance.mean_of(scores, True).seeds
    assert variance.mean_of(scores, False).seeds
    assert variance.mean_of(scores[:, :1], True).both == (None, None)
    assert variance.over_seeds([1.0]) == (None, None)
    low, high = variance.over_seeds([1.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2)
    assert high - 2 == pytest.approx(12.706205, abs=1e-4)


def test_a_linearised_harmonic_mean_is_the_harmonic_mean():
    values = np.array([1.0, 2.0, 4.0])
    assert variance.linear(values, "harmonic").mean() == pytest.approx(3 / (1 / values).sum())
    assert variance.linear(values, "arithmetic") is values


def test_images_of_one_prompt_are_averaged():
    assert variance.by_prompt(np.array([1.0, 3.0, 5.0, 7.0]), np.array([4, 4, 9, 9])) == pytest.approx([2, 6])
