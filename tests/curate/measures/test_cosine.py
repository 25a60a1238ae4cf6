"""Near vectors: the same as by comparing every one with every other."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from uhr.curate.measures import cosine
from uhr.curate.measures.cosine import CellIndex, leaders_within, nearest_within
from uhr.curate.measures.hamming import leaders


def clouds(seed: int, count: int, width: int = 16, spread: float = 0.15) -> np.ndarray:
    """Vectors of length 1 around a few directions, many of them near to each other."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(3, count // 8), width))
    found = centres[rng.integers(0, len(centres), count)] + spread * rng.normal(size=(count, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def all_pairs(vectors: np.ndarray, least: float) -> np.ndarray:
    near = np.triu(vectors @ vectors.T >= least, 1)
    return np.argwhere(near)


@pytest.mark.parametrize("block", [8, 1024])
@pytest.mark.parametrize("least", [0.5, 0.95, 1.1])
def test_leaders_are_those_of_all_pairs(block, least, monkeypatch):
    monkeypatch.setattr(cosine, "_BLOCK", block)
    for seed, count in ((0, 1), (1, 40), (2, 150)):
        vectors, done = clouds(seed, count), []
        expected = leaders(count, all_pairs(vectors, least)).tolist()
        assert leaders_within(vectors, least, done.append).tolist() == expected
        assert sum(done) == count
    assert leaders_within(np.empty((0, 4), np.float32), 0.9).tolist() == []


def test_the_nearest_of_another_set_is_the_first_of_those_with_the_largest_cosine(monkeypatch):
    monkeypatch.setattr(cosine, "_BLOCK", 4)
    vectors, others = clouds(3, 50), clouds(3, 90)
    product = vectors @ others.T
    least = float(np.median(product.max(1)))
    places, cosines = nearest_within(vectors, others, least)
    near = product.max(1) >= np.float32(least)
    assert 0 < near.sum() < 50
    assert places.tolist() == np.where(near, product.argmax(1), -1).tolist()
    assert cosines[near] == pytest.approx(product.max(1)[near], abs=1e-6)
    assert nearest_within(vectors, others[:0], 0.5)[0].tolist() == [-1] * 50


def shared(index: CellIndex, pairs: np.ndarray) -> np.ndarray:
    """The pairs of which either is in the nearest cell of the other."""
    cells, home = index.cells, index.cells[:, 0]
    one = (cells[pairs[:, 0]] == home[pairs[:, 1]][:, None]).any(1)
    return pairs[one | (cells[pairs[:, 1]] == home[pairs[:, 0]][:, None]).any(1)]


@pytest.mark.parametrize("block", [16, 1024])
def test_leaders_of_an_index_are_those_of_the_pairs_that_share_a_cell(block, monkeypatch):
    monkeypatch.setattr(cosine, "_BLOCK", block)
    for seed, least in ((4, 0.9), (5, 0.97), (6, 0.5)):
        vectors, done = clouds(seed, 700, width=32, spread=0.05), []
        index = CellIndex.build(vectors, least, recall=0.8)
        expected = leaders(len(vectors), shared(index, all_pairs(vectors, least)))
        assert index.leaders(vectors, least, done.append).tolist() == expected.tolist()
        assert sum(done) == len(vectors)


def test_an_index_finds_the_share_of_pairs_that_it_measures():
    vectors = clouds(4, 3000, width=32, spread=0.05)
    index, wanted = CellIndex.build(vectors, 0.9), all_pairs(vectors, 0.9)
    assert index.recall >= 0.99
    assert len(shared(index, wanted)) / len(wanted) == pytest.approx(index.recall, abs=0.02)
    assert index.cells.shape[1] < 32, "fewer cells are searched than there are"


def test_a_recall_that_is_not_reached_is_measured_too():
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(2000, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index, wanted = CellIndex.build(vectors, 0.3, recall=2.0), all_pairs(vectors, 0.3)
    assert index.cells.shape[1] == 32
    assert 0.3 < index.recall <= 1
    assert len(shared(index, wanted)) / len(wanted) == pytest.approx(index.recall, abs=0.05)


def test_equal_vectors_are_near_whatever_their_products_are_rounded_to():
    rng = np.random.default_rng(7)
    distinct = np.abs(rng.normal(size=(200, 1152)) + 3).astype(np.float32)
    vectors = np.concatenate([distinct, distinct[::-1]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    twins = np.concatenate([np.arange(200), np.arange(200)[::-1]])
    assert (np.einsum("ij,ij->i", vectors, vectors) < 1).any(), "rounding makes some smaller"
    assert leaders_within(vectors, 1.0).tolist() == twins.tolist()
    assert nearest_within(vectors, vectors[:200], 1.0)[0].tolist() == twins.tolist()
    assert CellIndex.build(vectors, 1.0).leaders(vectors, 1.0).tolist() == twins.tolist()


def test_memory_does_not_grow_with_the_number_of_near_vectors():
    vectors = np.zeros((4000, 8), np.float32)
    vectors[:, 0] = 1  # 8 million pairs
    tracemalloc.start()
    try:
        lead = CellIndex.build(vectors, 0.9).leaders(vectors, 0.9)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not lead.any()
    assert peak < 100 << 20
