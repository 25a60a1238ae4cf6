"""Values without groups of prompts are those of the other images alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.models.metrics.features import Features
from uhr.models.metrics.sets import distances, jackknife

from .test_features import made


def crops(rows: np.ndarray, each: int, column: str = "features") -> Features:
    """Features of images with `each` rows, merged in another order than theirs."""
    parts = [
        Features.of({"extractor": "test"}, number, {column: rows[number * each : (number + 1) * each]})
        for number in range(len(rows) // each)
    ]
    return Features.merge(parts[::-1])


@given(st.integers(0, 1000), st.sampled_from([5, 40]), st.sampled_from([1, 3]))
def test_frechet_without_a_group_is_that_of_the_rest(seed, references, each):
    """With fewer references than features, and with more."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(references, 12)), rng.normal(size=(14 * each, 12)) * 2 + 1
    groups = np.repeat(np.arange(14) % 4, each)
    found = jackknife.frechet(made(x), crops(y, each), "features", groups)
    for group in range(4):
        rest = distances.frechet(made(x), made(y[groups != group]), "features").value
        assert found[group] == pytest.approx(rest, rel=1e-6)


@given(st.integers(0, 1000), st.sampled_from([1, 3]))
def test_kernel_without_a_group_is_the_sum_over_the_other_pairs(seed, each):
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(n, 4)).astype(np.float32).astype(float) for n in (9, 8 * each))
    groups = np.repeat(np.arange(8) % 3, each)

    def mmd(x, y):
        xx, yy, xy = ((a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        n, m = len(x), len(y)
        within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
        return within - 2 * xy.mean()

    found = jackknife.kernel(made(x), crops(y, each), "features", groups)
    assert found == pytest.approx([mmd(x, y[groups != group]) for group in range(3)], rel=1e-6, abs=1e-9)


def test_kernel_of_more_rows_than_are_used_takes_them_evenly(monkeypatch):
    rng = np.random.default_rng(0)
    x, y, groups = rng.normal(size=(30, 4)), rng.normal(size=(40, 4)), np.arange(40) // 2 % 5
    monkeypatch.setattr(jackknife, "MOST_ROWS", 20)
    found = jackknife.kernel(made(x), made(y), "features", groups)
    expected = jackknife.kernel(made(x[np.arange(20) * 30 // 20]), made(y[::2]), "features", groups[::2])
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_inception_score_without_a_group_keeps_the_others_in_their_splits():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(5, 0.4), size=60)
    groups = np.arange(60) % 6
    generated = crops(p, 1, "probabilities")
    found = jackknife.inception_score(generated, "probabilities", groups, seed=3, splits=4)
    parts = np.array_split(np.random.default_rng(3).permutation(60), 4)
    for group in range(6):
        each = []
        for part in parts:
            rest = p[part[groups[part] != group]]
            each.append(np.exp((rest * np.log(rest / rest.mean(axis=0))).sum(axis=1).mean()))
        assert found[group] == pytest.approx(np.mean(each), rel=1e-5)
    one_split = jackknife.inception_score(generated, "probabilities", groups, splits=1)
    direct = distances.inception_score(crops(p[groups != 2], 1), "features", splits=1)
    assert one_split[2] == pytest.approx(direct.value, rel=1e-6)


def test_sets_that_are_too_small_without_a_group_have_no_values():
    rows = np.random.default_rng(0).normal(size=(3, 4))
    groups = np.array([0, 0, 1])
    assert jackknife.frechet(made(rows), made(rows), "features", groups) is None
    assert jackknife.kernel(made(rows), made(rows), "features", groups) is None
    assert jackknife.inception_score(made(np.abs(rows)), "features", groups, splits=3) is None
