"""Statistics of features without the images of one group of prompts at a time (delete-a-group jackknife).

How much they vary says how much a distance depends on which prompts there are, with the references fixed. A
bootstrap would resample prompts with repetition, and equal images make a distance of few images larger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uhr.models.metrics.features import Features
from uhr.models.metrics.sets import distances

if TYPE_CHECKING:
    import numpy as np

MOST_ROWS = 10_000
"""Rows of each set that the kernel distance is computed of, evenly spaced: its time grows with their square.
With fewer crops of an image the distance varies more, never less."""


def frechet(reference: Features, generated: Features, name: str, groups: np.ndarray) -> np.ndarray | None:
    """Return `distances.frechet` without each group, float64 [G]; None if a set without one is too small.

    groups: int [rows], the group of each row of `generated`, from 0 to G - 1.
    """
    import numpy as np

    sizes = np.bincount(groups)
    if len(generated) - sizes.max() < 2 or len(reference) < 2:
        return None
    m1, m2 = (distances.mean(each, name) for each in (reference, generated))
    if len(reference) <= len(m1):
        root = np.concatenate(list(distances.centred(reference, name, m1)))
    else:
        values, vectors = np.linalg.eigh(distances.covariance(reference, name, m1))
        root = (vectors * np.sqrt(np.maximum(values, 0))).T
    variance = float((root**2).sum())
    total = distances.covariance(generated, name, m2) * (len(generated) - 1)
    found = []
    for group, size in enumerate(sizes):
        rows = generated.rows(name, np.flatnonzero(groups == group)) - m2
        left, shift = len(generated) - size, -rows.sum(axis=0)
        covariance = (total - rows.T @ rows - np.outer(shift, shift) / left) / (left - 1)
        inner = root @ covariance @ root.T
        product = np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0)).sum()
        apart = ((m1 - m2 - shift / left) ** 2).sum()
        found.append(apart + variance + np.trace(covariance) - 2 * product)
    return np.array(found)


def kernel(reference: Features, generated: Features, name: str, groups: np.ndarray) -> np.ndarray | None:
    """Return the kernel distance of all rows (at most `MOST_ROWS`) without each group, float64 [G]; None if a
    set without one is too small. It is the unbiased squared MMD of sets of any two sizes (Gretton et al., A
    Kernel Two-Sample Test, JMLR 13, 2012, equation 3), which `distances.kernel` averages over subsets.
    """
    import numpy as np

    chosen, groups = _spaced(len(generated)), groups[_spaced(len(generated))]
    count = int(groups.max()) + 1
    sizes = np.bincount(groups, minlength=count)
    y = generated.rows(name, chosen).astype(np.float64)
    x = reference.rows(name, _spaced(len(reference))).astype(np.float64)
    n, m = len(x), len(y) - sizes
    if n < 2 or m.min() < 2:
        return None
    members = [np.flatnonzero(groups == group) for group in range(count)]
    own = float(sum(_kernel(block, x).sum() for block in _blocks(x)) - _diagonal(x).sum())
    # sums over pairs of a row of one group and a row of another, and over pairs of a group and the references
    pairs, across = np.zeros((count, count)), np.zeros(count)
    for group, rows in enumerate(members):
        for block in _blocks(y[rows]):
            by_row = _kernel(block, y).sum(axis=0)
            pairs[group] += np.bincount(groups, by_row, count)
            across[group] += _kernel(block, x).sum()
        pairs[group, group] -= _diagonal(y[rows]).sum()
    within = pairs.sum() - pairs.sum(axis=0) - pairs.sum(axis=1) + np.diag(pairs)
    return own / (n * (n - 1)) + within / (m * (m - 1)) - 2 * (across.sum() - across) / (n * m)


def inception_score(
    generated: Features, name: str, groups: np.ndarray, seed: int = 0, splits: int = distances.SPLITS
) -> np.ndarray | None:
    """Return `distances.inception_score` without each group, float64 [G], where the other rows stay in their
    splits; None if that leaves a split empty.
    """
    import numpy as np

    count = int(groups.max()) + 1
    order = np.random.default_rng(seed).permutation(len(generated))
    scores = np.zeros((splits, count))
    for split, part in enumerate(np.array_split(order, splits)):
        sizes = np.bincount(groups[part], minlength=count)
        left = len(part) - sizes
        if left.min() < 1:
            return None
        totals, entropies = [], np.zeros(count)
        for group in range(count):
            p = generated.rows(name, part[groups[part] == group]).astype(np.float64)
            totals.append(p.sum(axis=0))
            entropies[group] = -distances.x_log_x(p)
        marginals = (np.sum(totals, axis=0) - np.array(totals)) / left[:, None]
        divergence = np.array([-distances.x_log_x(each) for each in marginals])
        scores[split] = np.exp(divergence - (entropies.sum() - entropies) / left)
    return scores.mean(axis=0)


def _spaced(count: int) -> np.ndarray:
    import numpy as np

    return np.arange(min(count, MOST_ROWS)) * count // min(count, MOST_ROWS)


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + 1024] for start in range(0, len(rows), 1024)]


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T / one.shape[1] + 1) ** 3


def _diagonal(rows: np.ndarray) -> np.ndarray:
    return ((rows**2).sum(axis=1) / rows.shape[1] + 1) ** 3
