"""Vectors of length 1 whose cosine is at least a threshold: all pairs, or those that an index finds.

The index divides the vectors into cells around centres and compares each vector with those of the cells whose
centres are nearest to it. How many of the pairs it finds is measured on a sample before it is used.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Advance = Callable[[int], None]
"""Called with the number of vectors that were compared."""

EXACT = 100_000
"""The largest number of vectors of which all pairs are compared."""

RECALL = 0.99
"""The share of pairs of the sample that an index must find."""

ROUNDING = 4e-6
"""How far the cosine of equal vectors may be from 1. Rounded float32 products of up to 4,096 values were at
most 6e-7 from it.
"""

_BLOCK = 1024
_SAMPLE = 1000
_TRAINED, _ROUNDS = 64, 8
"""Vectors per cell that centres are computed from, and rounds of k-means."""


def rounded(least: float) -> float:
    """Return the threshold at which vectors whose cosine is `least` are surely found: equal ones at 1."""
    return min(least, 1.0 - ROUNDING)


def leaders_within(vectors: np.ndarray, least: float, advance: Advance = lambda n: None) -> np.ndarray:
    """Return for each vector the first earlier one that is near to it and leads itself, or its own place.

    Args:
        vectors: float32 [n, d], each of length 1, in the order of preference. least: the smallest cosine of
            vectors that are near, 0 to 1.

    Returns:
        int64 [n].
    """
    least = rounded(least)
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
    least = rounded(least)
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
        shares = _recalls(vectors, cells, least, rng)
        probes = next((each for each in sorted(shares) if shares[each] >= recall), most)
        return cls(cells[:, :probes], shares[probes])

    def leaders(self, vectors: np.ndarray, least: float, advance: Advance = lambda n: None) -> np.ndarray:
        """Return for each vector its leader, as `leaders_within` does, of those with which it shares a cell
        that is the nearest one of either.

        The memory is that of the index and of one block, however many vectors are near to each other.
        """
        least = rounded(least)
        lead = np.arange(len(vectors))
        # of the leaders so far: those whose nearest cell it is, and those that have it among theirs
        inside, around = defaultdict[int, _Places](_Places), defaultdict[int, _Places](_Places)
        for start in range(0, len(vectors), _BLOCK):
            stop = min(start + _BLOCK, len(vectors))
            best = np.full(stop - start, len(vectors))
            cells = self.cells[start:stop]
            for leaders, own in ((inside, cells), (around, cells[:, :1])):
                for cell, rows in _grouped(own.ravel(), own.shape[1]).items():
                    if cell in leaders:
                        _first_near(vectors, start + rows, leaders[cell].all, least, best, start)
            led = best < len(vectors)
            lead[start:stop][led] = best[led]
            new = _leaders_of(vectors, self.cells, start + np.flatnonzero(~led), least, lead)
            for leaders, own in ((inside, self.cells[new, :1]), (around, self.cells[new])):
                for cell, rows in _grouped(own.ravel(), own.shape[1]).items():
                    leaders[cell].add(new[rows])
            advance(stop - start)
        return lead


class _Places:
    """A growing array of places."""

    def __init__(self) -> None:
        self._places, self._count = np.empty(8, np.int32), 0

    @property
    def all(self) -> np.ndarray:
        return self._places[: self._count]

    def add(self, places: np.ndarray) -> None:
        count = self._count + len(places)
        if count > len(self._places):
            self._places = np.resize(self._places, 2 * count)
        self._places[self._count : count] = places
        self._count = count


def _first_near(
    vectors: np.ndarray, rows: np.ndarray, leaders: np.ndarray, least: float, best: np.ndarray, start: int
) -> None:
    """Lower `best` of these rows, whose first is `start`, to the first leader that is near."""
    for at in range(0, len(leaders), 16 * _BLOCK):
        places = leaders[at : at + 16 * _BLOCK]
        near = vectors[rows] @ vectors[places].T >= least
        found = np.where(near, places, len(vectors)).min(1)
        best[rows - start] = np.minimum(best[rows - start], found)


def _leaders_of(
    vectors: np.ndarray, cells: np.ndarray, places: np.ndarray, least: float, lead: np.ndarray
) -> np.ndarray:
    """Find the leaders among the places of a block, write those of the others to `lead`, and return them."""
    near = vectors[places] @ vectors[places].T >= least
    home = cells[places, 0]
    new: list[int] = []
    for row in range(len(places)):
        earlier = np.array(new, np.int64)[near[row, new]] if new else np.empty(0, np.int64)
        if len(earlier):
            one = np.isin(home[earlier], cells[places[row]])
            other = (cells[places[earlier]] == home[row]).any(1)
            earlier = earlier[one | other]
        if len(earlier):
            lead[places[row]] = places[earlier[0]]
        else:
            new.append(row)
    return places[new]


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


def _recalls(
    vectors: np.ndarray, cells: np.ndarray, least: float, rng: np.random.Generator
) -> dict[int, float]:
    """Return by number of probes (1, 2, 4, ...) the share of the pairs of a sample of vectors with every
    other of which either is in the nearest cell of the other; 1 if there is no pair.
    """
    least, most = rounded(least), cells.shape[1]
    sample = np.sort(rng.choice(len(vectors), min(_SAMPLE, len(vectors)), replace=False))
    probes = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    total, found = 0, dict.fromkeys(probes, 0)
    for start in range(0, len(vectors), _BLOCK):
        left, right = np.nonzero(vectors[sample] @ vectors[start : start + _BLOCK].T >= least)
        left, right = sample[left], start + right
        apart = left != right
        for at in range(0, len(left), 16 * _BLOCK):
            chosen = apart[at : at + 16 * _BLOCK]
            one, other = (cells[each[at : at + 16 * _BLOCK][chosen]] for each in (left, right))
            total += len(one)
            for count in probes:
                same = (one[:, :count] == other[:, :1]).any(1) | (other[:, :count] == one[:, :1]).any(1)
                found[count] += int(same.sum())
    return {count: number / total if total else 1.0 for count, number in found.items()}


def _grouped(cells: np.ndarray, repeats: int = 1) -> dict[int, np.ndarray]:
    """The places of the vectors in each cell, rising; each vector has `repeats` cells one after the other."""
    order = np.argsort(cells, kind="stable")
    values, starts = np.unique(cells[order], return_index=True)
    if not len(values):
        return {}
    return dict(zip(values.tolist(), np.split(order // repeats, starts[1:]), strict=True))
