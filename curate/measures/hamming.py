"""64-bit hashes within a Hamming distance of each other, exactly."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np

BITS = 64

_CHUNK = 1 << 22
"""Pairs of small buckets that are compared at one time."""

_BLOCK = 1 << 16
"""Pairs of a large bucket that are compared at one time: half a MiB, which stays in a core's cache."""

_SMALL = 16
"""Hashes in a bucket up to which many buckets are compared together."""

Advance = Callable[[int], None]
"""Called with the number of pairs that were compared."""


def leaders_within(hashes: np.ndarray, radius: int, advance: Advance = lambda pairs: None) -> np.ndarray:
    """Return for each place its leader, as `leaders` chooses it among places within the radius.

    Args:
        hashes: uint64 [n], in the order of preference. radius: 0 to 63.

    Returns:
        int64 [n].
    """
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    # equal hashes have one leader, that of the first of them: only distinct ones have to be compared
    order = np.argsort(first)
    places = first[order]
    lead = leaders(len(places), pairs_within(hashes[places], radius, advance))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return places[lead[rank[inverse]]].astype(np.int64)


def leaders(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return for each place the first earlier one that it is near to and that leads itself, or its own place.

    Places are in the order of preference: the first of a group leads. Every other place is within the radius
    of its leader, so that a chain of small steps does not make two different images one.

    Args:
        count: number of places.
        pairs: int64 [pairs, 2], the smaller place first.

    Returns:
        int64 [count].
    """
    found = np.arange(count)
    order = np.lexsort((pairs[:, 0], pairs[:, 1]))
    for first, second in pairs[order].tolist():
        # pairs of `second` come together, those with the best first place before the others
        if found[first] == first and found[second] == second:
            found[second] = first
    return found


def pairs_within(hashes: np.ndarray, radius: int, advance: Advance = lambda pairs: None) -> np.ndarray:
    """Return every pair of places whose hashes differ in at most `radius` bits.

    The hashes are cut into radius + 1 bands, of which such a pair has at least one in common, unless it is
    cheaper to compare every hash with every other.

    Args:
        hashes: uint64 [n], distinct. radius: 0 to 63.

    Returns:
        int64 [pairs, 2], the smaller place first, sorted, each pair once.
    """
    if radius == 0 or len(hashes) < 2:
        return np.empty((0, 2), np.int64)
    if _banded_cost(hashes, radius) < _whole_cost(hashes):
        found = list(_banded(hashes, radius, advance))
    else:
        found = list(_in_bucket(hashes, np.arange(len(hashes)), radius, advance))
    pairs = np.sort(np.concatenate(found), axis=1) if found else np.empty((0, 2), np.int64)
    return np.unique(pairs, axis=0).astype(np.int64)


def comparisons(hashes: np.ndarray, radius: int) -> int:
    """Return how many pairs of hashes `leaders_within` compares."""
    unique = np.unique(hashes)
    return min(_banded_cost(unique, radius), _whole_cost(unique)) if radius else 0


def comparisons_per_second() -> float:
    """Measure how many pairs this machine compares in a second."""
    hashes = np.arange(_BLOCK >> 4, dtype=np.uint64)
    start = time.perf_counter()
    list(_in_bucket(hashes, np.arange(len(hashes)), 0, lambda pairs: None))
    return _whole_cost(hashes) / (time.perf_counter() - start)


def nearest_within(hashes: np.ndarray, others: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each hash the place of the nearest of `others` within the radius, the first of several.

    Args:
        hashes: uint64 [n]. others: uint64 [m]. radius: 0 to 63.

    Returns:
        Places, int64 [n], -1 where there is none, and distances in bits, int64 [n].
    """
    far = (radius + 1) * len(others)
    best = np.full(len(hashes), far, np.int64)
    if len(others):
        for band, other in zip(_bands(hashes, radius), _bands(others, radius), strict=True):
            _improve(best, hashes, others, band, other, radius)
    found = best < far
    places = np.where(found, best % max(len(others), 1), -1)
    return places, np.where(found, best // max(len(others), 1), -1)


def _improve(
    best: np.ndarray, hashes: np.ndarray, others: np.ndarray, band: np.ndarray, other: np.ndarray, radius: int
) -> None:
    """Lower `best`, distance x len(others) + place, by comparing those that have a band in common."""
    order, order_of_others = np.argsort(band, kind="stable"), np.argsort(other, kind="stable")
    values, starts = np.unique(band[order], return_index=True)
    lows, highs = (np.searchsorted(other[order_of_others], values, side) for side in ("left", "right"))
    stops = np.r_[starts[1:], len(order)]
    met = lows < highs
    for start, stop, low, high in zip(
        *(each[met].tolist() for each in (starts, stops, lows, highs)), strict=True
    ):
        places = order_of_others[low:high]
        candidates, step = others[places], max(1, _BLOCK // (high - low))
        for at in range(start, stop, step):
            rows = order[at : min(at + step, stop)]
            apart = np.bitwise_count(hashes[rows, None] ^ candidates[None])
            nearest = apart.argmin(1)
            distance = apart[np.arange(len(rows)), nearest].astype(np.int64)
            key = np.where(distance <= radius, distance * len(others) + places[nearest], best[rows])
            best[rows] = np.minimum(best[rows], key)


def _bands(hashes: np.ndarray, radius: int) -> Iterator[np.ndarray]:
    """Yield radius + 1 consecutive groups of bits, which are all 64 bits of each hash."""
    edges = np.linspace(0, BITS, radius + 2).round().astype(int)
    for low, high in itertools.pairwise(edges.tolist()):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        # numpy sorts 16 bits by radix, many times faster than 64
        yield band.astype(np.uint16) if high - low <= 16 else band


def _whole_cost(hashes: np.ndarray) -> int:
    return len(hashes) * (len(hashes) - 1) // 2


def _banded_cost(hashes: np.ndarray, radius: int) -> int:
    total = 0
    for band in _bands(hashes, radius):
        counts = np.bincount(band) if band.dtype == np.uint16 else np.unique(band, return_counts=True)[1]
        total += int((counts.astype(np.int64) * (counts - 1) // 2).sum())
    return total


def _banded(hashes: np.ndarray, radius: int, advance: Advance) -> Iterator[np.ndarray]:
    """Yield pairs of places within the radius that have a band in common, int64 [pairs, 2]."""
    for band in _bands(hashes, radius):
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(band[order]) != 0])
        sizes = np.diff(np.r_[starts, len(order)])
        ordered, small = hashes[order], sizes <= _SMALL
        for start, size in zip(starts[~small].tolist(), sizes[~small].tolist(), strict=True):
            stop = start + size
            yield from _in_bucket(ordered[start:stop], order[start:stop], radius, advance)
        # the number of places after each one in its small bucket
        after = np.repeat(starts + sizes, sizes) - np.arange(len(order)) - 1
        after[np.repeat(~small, sizes)] = 0
        for left, right in _following(after):
            close = np.bitwise_count(ordered[left] ^ ordered[right]) <= radius
            yield np.stack([order[left[close]], order[right[close]]], 1)
            advance(len(left))


def _in_bucket(hashes: np.ndarray, places: np.ndarray, radius: int, advance: Advance) -> Iterator[np.ndarray]:
    """Compare each hash with all that follow it, a block of rows at a time, and yield `places` of the pairs
    within the radius.
    """
    count, start = len(hashes), 0
    while start < count - 1:
        left_over = count - start
        rows = max(1, min(_BLOCK // left_over, left_over))
        apart = np.bitwise_count(hashes[start : start + rows, None] ^ hashes[None, start:])
        left, right = np.divmod(np.flatnonzero(apart <= radius), left_over)
        ahead = left < right
        if ahead.any():
            yield np.stack([places[start + left[ahead]], places[start + right[ahead]]], 1)
        advance(rows * left_over - rows * (rows + 1) // 2)
        start += rows


def _following(counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs of each place with the `counts` places that follow it, in chunks."""
    total = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, before + _CHUNK)))
        of = counts[start:stop]
        left = np.repeat(np.arange(start, stop), of)
        steps = np.arange(len(left)) - np.repeat(np.cumsum(of) - of, of) + 1
        yield left, left + steps
        start = stop
