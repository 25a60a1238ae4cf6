"""Vectors of length 1 whose cosine is at least a threshold: all pairs, or those that an index finds.

The index divides the vectors into cells around centres and compares each vector with those of the cells whose
centres are nearest to it. How many of the pairs it finds is measured on a sample before it is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Advance = Callable[[int], None]
"""Called with the number of vectors that were compared."""

EXACT = 100_000
"""The largest number of vectors of which all pairs are compared."""

RECALL = 0.99
"""The share of pairs of the sample that an index must find."""

_BLOCK = 1024
_SAMPLE = 1000
_TRAINED, _ROUNDS = 64, 8
"""Vectors per cell that centres are computed from, and rounds of k-means."""


def leaders_within(vectors: np.ndarray, least: float, advance: Advance = lambda n: None) -> np.ndarray:
    """Return for each vector the first earlier one that is near to it and leads itself, or its own place.

    Args:
        vectors: float32 [n, d], each of length 1, in the order of preference. least: the smallest cosine of
            vectors that are near, 0 to 1.

    Returns:
        int64 [n].
    """
    lead = np.arange(len(vectors))
    leaders = np.empty(0, np.int64)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        for at in range(0, len(leaders), 16 * _BLOCK):
            places = leaders[at : at + 16 * _BLOCK]
            open_ = np.flatnonzero(lead[start : start + len(block)] >= start)
            near = block[open_] @ vectors[places].T >= least
            found = near.any(1)
            lead[start + open_[found]] = places[near[found].argmax(1)]
        own = np.flatnonzero(lead[start : start + len(block)] >= start)
        near = block[own] @ block[own].T >= least
        new: list[int] = []
        for row, place in enumerate(own.tolist()):
            earlier = np.flatnonzero(near[row, new])
            if len(earlier):
                lead[start + place] = start + own[new[earlier[0]]]
            else:
                new.append(row)
        leaders = np.concatenate([leaders, start + own[new]])
        advance(len(block))
    return lead


def nearest_within(
    vectors: np.ndarray, others: np.ndarray, least: float, advance: Advance = lambda n: None
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each vector the place of the nearest of `others`, -1 if its cosine is below `least`.

    Args:
        vectors: float32 [n, d]. others: float32 [m, d]. All have length 1.

    Returns:
        int64 [n], and the cosines, float32 [n], -1 where there is none.
    """
    places, best = np.full(len(vectors), -1), np.full(len(vectors), -1.0, np.float32)
    for start in range(0, len(vectors), _BLOCK):
        rows = slice(start, start + _BLOCK)
        for at in range(0, len(others), 16 * _BLOCK):
            cosines = vectors[rows] @ others[at : at + 16 * _BLOCK].T
            nearest = cosines.argmax(1)
            value = cosines[np.arange(len(cosines)), nearest]
            better = value > best[rows]
            best[rows] = np.where(better, value, best[rows])
            places[rows] = np.where(better, at + nearest, places[rows])
        advance(len(vectors[rows]))
    far = best < least
    places[far], best[far] = -1, -1.0
    return places, best


def seconds_of(rows: int, others: int, width: int) -> float:
    """Return how long the comparison of `rows` vectors with `others` takes here, in s; it is measured."""
    block = np.ones((_BLOCK, width), np.float32)
    start = time.perf_counter()
    (block @ block.T >= 2).any(1)
    return (time.perf_counter() - start) * (rows / _BLOCK) * (others / _BLOCK)


@dataclass(frozen=True)
class CellIndex:
    """`cells` has the cells of each vector, the nearest first, int32 [n, probes]; `recall` is the share of
    the sampled pairs that are found by comparing within them.
    """

    cells: np.ndarray
    recall: float

    @classmethod
    def build(cls, vectors: np.ndarray, least: float, recall: float = RECALL) -> CellIndex:
        """Compute the centres, and take as many cells for each vector as the recall requires.

        vectors: float32 [n, d], each of length 1. The same vectors give the same index.
        """
        rng = np.random.default_rng(0)
        count = max(1, round(len(vectors) ** 0.5))
        chosen = rng.choice(len(vectors), min(len(vectors), count * _TRAINED), replace=False)
        centres = _centres(vectors[np.sort(chosen)], count, rng)
        most = min(32, count)
        cells = np.concatenate([_nearest_cells(each, centres, most) for each in _blocks(vectors)])
        pairs = _sampled_pairs(vectors, least, rng)
        probes, found = 1, _found(cells, pairs, 1)
        while found < recall and probes < most:
            probes = min(2 * probes, most)
            found = _found(cells, pairs, probes)
        return cls(cells[:, :probes], found)

    def pairs(self, vectors: np.ndarray, least: float, advance: Advance = lambda n: None) -> np.ndarray:
        """Return the pairs within the threshold that share a cell which is the nearest one of either.

        Returns int64 [pairs, 2], the smaller place first, sorted, each pair once.
        """
        first = self.cells[:, 0]
        members = _grouped(first)
        visitors = _grouped(self.cells.ravel(), self.cells.shape[1])
        found = []
        for cell, inside in members.items():
            coming = visitors[cell]
            for start in range(0, len(coming), _BLOCK):
                rows = coming[start : start + _BLOCK]
                left, right = np.nonzero(vectors[rows] @ vectors[inside].T >= least)
                pair = np.stack([rows[left], inside[right]], 1)
                found.append(np.sort(pair[pair[:, 0] != pair[:, 1]], axis=1))
            advance(len(inside))
        pairs = np.concatenate(found) if found else np.empty((0, 2), np.int64)
        return np.unique(pairs, axis=0)


def _blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(vectors), _BLOCK):
        yield vectors[start : start + _BLOCK]


def _centres(vectors: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Spherical k-means: directions [count, d]. An empty cell begins again at a random vector."""
    centres = vectors[rng.choice(len(vectors), count, replace=False)]
    for _ in range(_ROUNDS):
        cell = np.concatenate([_nearest_cells(each, centres, 1)[:, 0] for each in _blocks(vectors)])
        order = np.argsort(cell, kind="stable")
        values, starts = np.unique(cell[order], return_index=True)
        centres = vectors[rng.choice(len(vectors), count, replace=False)]
        sums = np.add.reduceat(vectors[order], starts)
        centres[values] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return centres


def _nearest_cells(vectors: np.ndarray, centres: np.ndarray, most: int) -> np.ndarray:
    cosines = vectors @ centres.T
    if most == 1:
        return cosines.argmax(1)[:, None].astype(np.int32)
    near = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
    order = np.argsort(-np.take_along_axis(cosines, near, 1), axis=1, kind="stable")
    return np.take_along_axis(near, order, 1).astype(np.int32)


def _sampled_pairs(vectors: np.ndarray, least: float, rng: np.random.Generator) -> np.ndarray:
    """All pairs of a sample of vectors with every other, int64 [pairs, 2]."""
    sample = np.sort(rng.choice(len(vectors), min(_SAMPLE, len(vectors)), replace=False))
    found = []
    for start in range(0, len(vectors), 16 * _BLOCK):
        left, right = np.nonzero(vectors[sample] @ vectors[start : start + 16 * _BLOCK].T >= least)
        found.append(np.stack([sample[left], start + right], 1))
    pairs = np.concatenate(found)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _found(cells: np.ndarray, pairs: np.ndarray, probes: int) -> float:
    """The share of pairs of which either is in the nearest cell of the other; 1 if there is no pair."""
    if not len(pairs):
        return 1.0
    left, right = cells[pairs[:, 0]], cells[pairs[:, 1]]
    one = (left[:, :probes] == right[:, :1]).any(1)
    return float((one | (right[:, :probes] == left[:, :1]).any(1)).mean())


def _grouped(cells: np.ndarray, repeats: int = 1) -> dict[int, np.ndarray]:
    """The places of the vectors in each cell, rising; each vector has `repeats` cells one after the other."""
    order = np.argsort(cells, kind="stable")
    values, starts = np.unique(cells[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order // repeats, starts[1:]), strict=True))
