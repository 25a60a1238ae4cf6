"""Pairs within a Hamming distance: the same as by comparing every hash with every other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from uhr.curate.measures.hamming import leaders, pairs_within


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


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4, 5, 9])
def test_the_pairs_are_those_of_comparing_all_with_all(radius):
    for seed, count in ((0, 0), (1, 1), (2, 2), (3, 90), (4, 150)):
        hashes = crowded(seed, count)
        assert [tuple(pair) for pair in pairs_within(hashes, radius).tolist()] == by_hand(hashes, radius)


def test_many_equal_hashes_are_all_pairs():
    hashes = np.array([7, 7, 9, 7], np.uint64)
    assert pairs_within(hashes, 0).tolist() == [[0, 1], [0, 3], [1, 3]]
    assert len(pairs_within(hashes, 3)) == 6, "7 and 9 differ in three bits"


def test_a_chain_of_small_steps_does_not_make_two_different_images_one():
    # 0 - 1 - 2 - 3: each is near to the next one only
    assert leaders(4, np.array([[0, 1], [1, 2], [2, 3]])).tolist() == [0, 0, 2, 2]
    assert leaders(3, np.array([[0, 2], [1, 2]])).tolist() == [0, 1, 0], "the best of two leaders"
    assert leaders(2, np.empty((0, 2), np.int64)).tolist() == [0, 1]
