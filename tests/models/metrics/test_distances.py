"""Statistics of features agree with their formulas, computed independently."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from uhr.models.metrics.registry import metric
from uhr.models.metrics.sets import distances
from uhr.models.metrics.sets.distribution import InceptionScore, RandomFrechet

from .test_features import made


def plain_frechet(x: np.ndarray, y: np.ndarray) -> float:
    """The formula by scipy's matrix root, as pytorch-fid and clean-fid compute it."""
    one, other = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(one @ other)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + other - 2 * root.real))


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@given(st.integers(0, 1000), st.integers(2, 40), st.integers(2, 40))
def test_frechet_is_the_formula_with_few_and_with_many_rows(seed, n, m):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, 12)) @ rng.normal(size=(12, 12))).astype(np.float32)
    y = (rng.normal(size=(m, 12)) * 2 + 1).astype(np.float32)
    found = distances.frechet(made(x), made(y), "features")
    # sqrtm of a singular product is not exact: the plain formula is then off by some 1e-4
    assert found.value == pytest.approx(plain_frechet(x.astype(float), y.astype(float)), rel=1e-3)
    assert found.n == min(n, m)


def test_the_kernel_distance_of_sets_of_one_distribution_is_0_on_average_as_its_range_says():
    rng = np.random.default_rng(0)
    found = [
        distances.kernel(*(made(rng.normal(size=(8, 4))) for _ in range(2)), "features") for _ in range(200)
    ]
    values = np.array([each.value for each in found])
    assert (values < 0).mean() > 0.2
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(200)
    assert "below 0 by chance" in metric("random-kernel").columns[0].range
    assert (RandomFrechet.range, InceptionScore.range) == (">= 0", ">= 1")


def test_frechet_of_gaussians_with_known_moments():
    """Two points at m +- s on each axis have mean m and a diagonal covariance: the distance has a closed
    form."""
    axes = np.eye(3) * np.sqrt(5 / 2)
    points = np.concatenate([axes, -axes])  # covariance: identity
    scales, shift = np.array([1.0, 2.0, 3.0]), np.array([1.0, 0, -2])
    found = distances.frechet(made(points), made(points * scales + shift), "features").value
    assert found == pytest.approx((shift**2).sum() + ((scales - 1) ** 2).sum(), rel=1e-6)


@given(st.integers(0, 1000))
def test_kernel_over_all_rows_is_the_sum_over_pairs(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 4)) + 0.5
    x, y = x.astype(np.float32).astype(float), y.astype(np.float32).astype(float)
    k = lambda a, b: (a @ b / 4 + 1) ** 3  # noqa: E731

    def mmd(x, y):
        n = len(x)
        within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i in range(n) for j in range(n) if i != j)
        return within / (n * (n - 1)) - 2 * sum(k(a, b) for a in x for b in y) / n**2

    found = distances.kernel(made(x), made(y), "features")
    assert found.value == pytest.approx(mmd(x, y), rel=1e-6, abs=1e-9)
    left_out = np.array([mmd(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(6)])
    expected = np.sqrt(5 / 6 * ((left_out - left_out.mean()) ** 2).sum())
    assert (found.spread, found.spread_of) == (pytest.approx(expected, rel=1e-6), "jackknife")


def test_kernel_over_subsets_depends_on_the_seed_alone_and_is_unbiased():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 4)), rng.normal(size=(60, 4)) + 0.3
    same = [distances.kernel(made(x), made(y), "features", seed=1, size=20) for _ in range(2)]
    other = distances.kernel(made(x), made(y), "features", seed=2, size=20)
    assert same[0] == same[1] != other
    assert same[0].spread_of == "subsets"
    whole = distances.kernel(made(x[:60]), made(y), "features").value
    assert abs(other.value - whole) < 3 * other.spread
    assert abs(same[0].value - other.value) < other.spread


def test_the_inception_score_of_known_probabilities():
    """Every image sure of one of ten classes, all classes equally often: 10. All images alike: 1."""
    sure = made(np.tile(np.eye(10), (10, 1)))
    # one split: the classes are balanced in it exactly
    assert distances.inception_score(sure, "features", splits=1).value == pytest.approx(10)
    alike = distances.inception_score(made(np.full((20, 10), 0.1)), "features")
    assert (alike.value, alike.spread) == (pytest.approx(1), pytest.approx(0, abs=1e-6))


@given(st.integers(0, 1000))
def test_the_inception_score_is_the_mean_divergence_from_the_marginal(seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(5, 0.4), size=12).astype(np.float32).astype(float)
    marginal = p.mean(axis=0)
    expected = np.exp((p * (np.log(np.maximum(p, 1e-300)) - np.log(marginal))).sum(axis=1).mean())
    assert distances.inception_score(made(p), "features", splits=1).value == pytest.approx(expected, rel=1e-6)
