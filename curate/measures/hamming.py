"""All pairs of 64-bit hashes within a Hamming distance, exactly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

BITS = 64

BANDED = 4
"""The largest radius that is searched by bands; with more bands than five, each is so short that too many
hashes share one."""

_CHUNK = 1 << 22
"""Pairs that are compared at one time."""


def pairs_within(hashes: np.ndarray, radius: int) -> np.ndarray:
    """Return every pair of different places whose hashes differ in at most `radius` bits.

    Args:
        hashes: uint64 [n]. radius: 0 to 63. Up to `BANDED` the hashes are cut into radius + 1 bands, of which
        such a pair has at least
            one in common; above, every hash is compared with every other.

    Returns:
        int64 [pairs, 2], the smaller place first, sorted, each pair once.
    """
    unique, inverse = np.unique(hashes, return_inverse=True)
    near = _near(unique, radius)
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(len(unique) + 1))
    found = [_product(order, starts, near)] if len(near) else []
    counts = np.diff(starts)
    for value in np.flatnonzero(counts > 1):
        places = order[starts[value] : starts[value + 1]]
        left, right = np.triu_indices(len(places), 1)
        found.append(np.stack([places[left], places[right]], 1))
    if not found:
        return np.empty((0, 2), np.int64)
    pairs = np.sort(np.concatenate(found), axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].astype(np.int64)


def _near(unique: np.ndarray, radius: int) -> np.ndarray:
    """Return the pairs of places in sorted, distinct hashes within the radius, each once."""
    if radius == 0 or len(unique) < 2:
        return np.empty((0, 2), np.int64)
    candidates = _banded(unique, radius) if radius <= BANDED else _all_pairs(len(unique))
    found = []
    for left, right in candidates:
        close = np.bitwise_count(unique[left] ^ unique[right]) <= radius
        found.append(np.stack([left[close], right[close]], 1))
    pairs = np.sort(np.concatenate(found), axis=1) if found else np.empty((0, 2), np.int64)
    return np.unique(pairs, axis=0)


def _banded(hashes: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of places that have a band in common."""
    edges = np.linspace(0, BITS, radius + 2).round().astype(int)
    for low, high in itertools.pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(band[order]) != 0])
        ends = np.r_[starts[1:], len(order)]
        # the places after each one in its bucket, as one flat list of pairs
        last = np.repeat(ends, ends - starts)
        counts = last - np.arange(len(order)) - 1
        yield from _following(order, counts)


def _following(order: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs of each place with the `counts` places that follow it in `order`, in chunks."""
    total = np.cumsum(counts)
    start = 0
    while start < len(order):
        before = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, before + _CHUNK)))
        of = counts[start:stop]
        left = np.repeat(np.arange(start, stop), of)
        steps = np.arange(len(left)) - np.repeat(np.cumsum(of) - of, of) + 1
        yield order[left], order[left + steps]
        start = stop


def _all_pairs(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return _following(np.arange(count), np.arange(count - 1, -1, -1))


def _product(order: np.ndarray, starts: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the pairs of places behind pairs of distinct hashes."""
    counts = np.diff(starts)
    left, right = counts[near[:, 0]], counts[near[:, 1]]
    each = left * right
    within = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
    width = np.repeat(right, each)
    a = np.repeat(starts[near[:, 0]], each) + within // width
    b = np.repeat(starts[near[:, 1]], each) + within % width
    return np.stack([order[a], order[b]], 1)


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
