"""Pairs within a Hamming distance: the same as by comparing every hash with every other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from uhr.curate.measures import hamming
from uhr.curate.measures.hamming import (
    comparisons,
    leaders,
    leaders_within,
    nearest_within,
    pairs_within,
)


def by_hand(hashes: np.ndarray, radius: int) -> list[tuple[int, int]]:
    values = [int(value) for value in hashes]
    return [
        (i, j)
        for i, j in itertools.combinations(range(len(values)), 2)
        if (values[i] ^ values[j]).bit_count() <= radius
    ]


def crowded(seed: int, count: int) -> np.ndarray:
    """Hashes around a few centres, at distances from 0 to 9 bits, some of them equal."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 6, dtype=np.uint64)
    hashes = centres[rng.integers(0, 6, count)]
    for place in range(count):
        for bit in rng.choice(64, rng.integers(0, 6), replace=False):
            hashes[place] ^= np.uint64(1) << np.uint64(bit)
    return hashes


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4, 5, 9, 20])
def test_the_pairs_are_those_of_comparing_all_with_all(radius):
    for seed, count in ((0, 0), (1, 1), (2, 2), (3, 90), (4, 150)):
        hashes = np.unique(crowded(seed, count))
        compared = []
        found = [tuple(pair) for pair in pairs_within(hashes, radius, compared.append).tolist()]
        assert found == by_hand(hashes, radius)
        assert sum(compared) == comparisons(hashes, radius), "what was foretold"


@pytest.mark.parametrize("small", [0, 16])
def test_large_and_small_buckets_give_the_same_pairs(small, monkeypatch):
    monkeypatch.setattr(hamming, "_SMALL", small)
    monkeypatch.setattr(hamming, "_BLOCK", 64)
    hashes = np.unique(crowded(5, 120))
    assert [tuple(pair) for pair in pairs_within(hashes, 4).tolist()] == by_hand(hashes, 4)


@pytest.mark.parametrize("radius", [0, 3, 6])
def test_leaders_are_those_of_all_pairs_equal_hashes_included(radius):
    hashes = np.concatenate([crowded(6, 60), crowded(6, 60)[::3]])
    pairs = np.array(by_hand(hashes, radius), np.int64).reshape(-1, 2)
    assert leaders_within(hashes, radius).tolist() == leaders(len(hashes), pairs).tolist()


def test_a_hundred_thousand_equal_hashes_need_no_pairs():
    found = leaders_within(np.full(100_000, 7, np.uint64), 4)
    assert not found.any(), "all follow the first"
    assert comparisons(np.full(100_000, 7, np.uint64), 4) == 0


@pytest.mark.parametrize("radius", [0, 4, 9])
def test_the_nearest_of_another_set_is_that_of_comparing_all(radius):
    hashes, others = crowded(7, 40), crowded(7, 90)[::-1].copy()
    places, distances = nearest_within(hashes, others, radius)
    for at, value in enumerate(hashes.tolist()):
        apart = [(value ^ other).bit_count() for other in others.tolist()]
        least = min(apart)
        wanted = (apart.index(least), least) if least <= radius else (-1, -1)
        assert (places[at], distances[at]) == wanted
    assert nearest_within(hashes, others[:0], radius)[0].tolist() == [-1] * 40


def test_a_chain_of_small_steps_does_not_make_two_different_images_one():
    # 0 - 1 - 2 - 3: each is near to the next one only
    assert leaders(4, np.array([[0, 1], [1, 2], [2, 3]])).tolist() == [0, 0, 2, 2]
    assert leaders(3, np.array([[0, 2], [1, 2]])).tolist() == [0, 1, 0], "the best of two leaders"
    assert leaders(2, np.empty((0, 2), np.int64)).tolist() == [0, 1]
