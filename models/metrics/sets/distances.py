"""Statistics of features: Fréchet distance, kernel distance and Inception Score.

All are computed in float64, from blocks of rows in the order of the images: the results do not depend on
how the images were divided among workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from uhr.base.errors import UserError
from uhr.models.metrics.base import Value
from uhr.models.metrics.features import Features

if TYPE_CHECKING:
    import numpy as np

SUBSETS = 100
"""Subsets of the kernel distance, as in clean-fid and torchmetrics."""

SUBSET = 1000
"""Rows of a subset, or all rows of the smaller set if it has fewer."""

SPLITS = 10
"""Splits of the Inception Score (arXiv 1606.03498)."""


def frechet(reference: Features, generated: Features, name: str) -> Value:
    """Return the Fréchet distance of two Gaussians fitted to the features (arXiv 1706.08500, equation 6):
    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with unbiased covariances.

    Raises UserError for sets of fewer than two rows.
    """
    import numpy as np

    _check_rows(reference, generated)
    means = [mean(each, name) for each in (reference, generated)]
    variances = [_variance(each, name, own) for each, own in zip((reference, generated), means, strict=True)]
    width = len(means[0])
    if len(reference) <= width and len(generated) <= width:
        product = _product_from_rows(reference, generated, name, means)
    else:
        product = _product_from_covariances(reference, generated, name, means)
    distance = float(((means[0] - means[1]) ** 2).sum()) + sum(variances) - 2 * product
    # rounding may give a tiny negative number for equal sets
    return Value(
        max(distance, 0.0) if np.isfinite(distance) else distance, min(len(reference), len(generated))
    )


def kernel(
    reference: Features,
    generated: Features,
    name: str,
    seed: int = 0,
    subsets: int = SUBSETS,
    size: int = SUBSET,
) -> Value:
    """Return the kernel distance (arXiv 1801.01401): the unbiased squared MMD with the kernel (x.y / D +
    1)^3, as the mean over random subsets of rows. It is not multiplied by 1,000.

    The spread is the standard deviation over the subsets, which share rows: it is no standard error. If both
    sets have the same number of rows, and no more than a subset, there is only one: the spread is then the
    jackknife standard error, which leaves out one row of each set at a time.

    Raises UserError for sets of fewer than two rows.
    """
    import numpy as np

    _check_rows(reference, generated)
    size = min(size, len(reference), len(generated))
    if size == len(reference) == len(generated):
        everything = np.arange(size)
        value, spread = _mmd_with_jackknife(
            reference.rows(name, everything), generated.rows(name, everything)
        )
        return Value(value, size, spread, "jackknife")
    rng = np.random.default_rng(seed)
    found = [
        _mmd(
            reference.rows(name, np.sort(rng.choice(len(reference), size, replace=False))),
            generated.rows(name, np.sort(rng.choice(len(generated), size, replace=False))),
        )
        for _ in range(subsets)
    ]
    smaller = min(len(reference), len(generated))
    return Value(float(np.mean(found)), smaller, float(np.std(found)), "subsets")


def inception_score(generated: Features, name: str, seed: int = 0, splits: int = SPLITS) -> Value:
    """Return exp(E KL(p(y|x) | p(y))) of class probabilities (arXiv 1606.03498), as the mean over splits of
    the rows in a random order; the spread is the standard deviation over the splits.

    Raises UserError if there are fewer rows than splits.
    """
    import numpy as np

    if len(generated) < splits:
        what = f"the Inception Score of {len(generated)} rows in {splits} splits is undefined"
        raise UserError(what, f"give at least {splits} images")
    order = np.random.default_rng(seed).permutation(len(generated))
    scores = []
    for part in np.array_split(order, splits):
        # the mean KL divergence is the entropy of the mean less the mean entropy: one pass over blocks
        total, entropy = np.zeros(0), 0.0
        for start in range(0, len(part), 256):
            p = generated.rows(name, part[start : start + 256]).astype(np.float64)
            total = p.sum(axis=0) if not total.size else total + p.sum(axis=0)
            entropy -= x_log_x(p)
        marginal = total / len(part)
        scores.append(np.exp(-x_log_x(marginal) - entropy / len(part)))
    return Value(float(np.mean(scores)), len(generated), float(np.std(scores)), "splits")


def x_log_x(p: np.ndarray) -> float:
    """Return the sum of p log p, where 0 log 0 is 0."""
    import numpy as np

    return float((p * np.log(np.where(p > 0, p, 1.0))).sum())


def _check_rows(reference: Features, generated: Features) -> None:
    for what, each in (("reference", reference), ("generated", generated)):
        if len(each) < 2:
            raise UserError(f"the {what} set has {len(each)} rows of features", "give at least two images")


def mean(features: Features, name: str) -> np.ndarray:
    """Return the mean of all rows, float64 [D]."""
    import numpy as np

    total = sum(block.astype(np.float64).sum(axis=0) for block in features.blocks(name))
    return np.asarray(total) / len(features)


def centred(features: Features, name: str, middle: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the blocks with the mean subtracted, divided so that X^T X is the unbiased covariance."""
    for block in features.blocks(name):
        yield (block - middle) / (len(features) - 1) ** 0.5


def covariance(features: Features, name: str, middle: np.ndarray) -> np.ndarray:
    """Return the unbiased covariance of all rows, whose mean is `middle`, float64 [D, D]."""
    import numpy as np

    total = np.zeros((len(middle), len(middle)))
    for block in centred(features, name, middle):
        total += block.T @ block
    return total


def variation(features: Features, name: str) -> float:
    """Return how much features of different images differ: the trace of their covariance over the squared
    length of their mean, >= 0; infinite where the mean is 0. Two rows at least.
    """
    middle = mean(features, name)
    length = float((middle**2).sum())
    return _variance(features, name, middle) / length if length else math.inf


def _variance(features: Features, name: str, middle: np.ndarray) -> float:
    """The trace of the covariance."""
    return sum(float((block**2).sum()) for block in centred(features, name, middle))


def _product_from_rows(reference: Features, generated: Features, name: str, means: list[np.ndarray]) -> float:
    """tr (S1 S2)^(1/2) as the sum of the singular values of X1 X2^T, where S = X^T X: exact, also where there
    are fewer rows than features and the covariances are singular.
    """
    import numpy as np

    one, other = (
        np.concatenate(list(centred(each, name, own)))
        for each, own in zip((reference, generated), means, strict=True)
    )
    return float(np.linalg.svd(one @ other.T, compute_uv=False).sum())


def _product_from_covariances(
    reference: Features, generated: Features, name: str, means: list[np.ndarray]
) -> float:
    """The same from the covariances: the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2)."""
    import numpy as np

    covariances = [
        covariance(each, name, own) for each, own in zip((reference, generated), means, strict=True)
    ]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = root @ covariances[1] @ root
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0)).sum())


def _kernels(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np

    x, y = x.astype(np.float64), y.astype(np.float64)
    width = x.shape[1]
    xx, yy, xy = ((a @ b.T / width + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    np.fill_diagonal(xx, 0)
    np.fill_diagonal(yy, 0)
    return xx, yy, xy


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared MMD of two sets of as many rows."""
    xx, yy, xy = _kernels(x, y)
    n = len(x)
    return float((xx.sum() + yy.sum()) / (n * (n - 1)) - 2 * xy.sum() / n**2)


def _mmd_with_jackknife(x: np.ndarray, y: np.ndarray) -> tuple[float, float | None]:
    """The same, and its standard error over the sets without row i of both, for every i."""
    import numpy as np

    xx, yy, xy = _kernels(x, y)
    n = len(x)
    value = float((xx.sum() + yy.sum()) / (n * (n - 1)) - 2 * xy.sum() / n**2)
    if n < 4:
        return value, None
    m = n - 1
    within = (xx.sum() - 2 * xx.sum(axis=0) + yy.sum() - 2 * yy.sum(axis=0)) / (m * (m - 1))
    between = (xy.sum() - xy.sum(axis=0) - xy.sum(axis=1) + np.diag(xy)) / m**2
    left_out = within - 2 * between
    return value, float(np.sqrt(m / n * ((left_out - left_out.mean()) ** 2).sum()))
