"""Copies are found with their shift; what occurs once, or many times, is not."""

import cv2
import numpy as np
import pytest

from benchmarks.artifacts import copied, first
from uhr.models.metrics.artifacts.repetition import grouped, log_binomial_tail
from uhr.models.metrics.base import Sample
from uhr.models.metrics.registry import metric


def test_the_bound_of_the_binomial_tail_is_one():
    from math import comb, log

    for n, k, p in ((10, 5, 0.1), (50, 4, 0.01), (30, 30, 0.2)):
        exact = log(sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1)))
        bound = log_binomial_tail(n, k, p)
        assert exact <= bound + 1e-9
        assert bound < exact + log(n + 1)
    assert log_binomial_tail(10, 1, 0.5) == 0


def test_random_shifts_are_no_group():
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(200):
        one, two = rng.random((2, 60, 2)).astype(np.float32) * 1000
        scores.append(grouped(one, two, 15, 1e6)[0].score)
    # the expected number of groups by chance: at most one in ten has a score of 1
    assert np.mean(np.array(scores) >= 1) <= 0.1
    assert max(scores) < 4


def test_photographs_have_nothing_twice(photos, discs):
    repetition = metric("repetition")
    for image in (*photos.values(), discs):
        found = repetition.score([Sample(image)])[0]
        assert found["repetition_score"] < 10
        assert found["repetition_area"] == 0


def test_flat_images_have_no_features():
    for level in (0, 255):
        found = metric("repetition").score([Sample(np.full((300, 400, 3), level, np.uint8))])[0]
        assert found == {"repetition_score": 0.0, "repetition_area": 0.0}


def test_larger_copies_score_higher(photos):
    repetition, image = metric("repetition"), photos["astronaut.png"]
    values = [first(repetition, copied(image, side, np.random.default_rng(1))) for side in (24, 64, 112)]
    assert values == sorted(values)
    assert values[-1] > 20


@pytest.mark.parametrize(("angle", "scale"), [(0, 1), (12, 1), (0, 1.2), (0, 0.85)])
def test_a_copy_is_found_at_its_place_when_it_is_turned_or_resized(photos, angle, scale):
    part = cv2.resize(photos["chelsea.png"], (160, 160), interpolation=cv2.INTER_AREA)
    turned = cv2.warpAffine(
        part, cv2.getRotationMatrix2D((80, 80), angle, scale), (160, 160), borderMode=cv2.BORDER_REFLECT
    )
    image = cv2.resize(photos["retina.jpg"], (900, 900), interpolation=cv2.INTER_AREA)
    image[100:260, 60:220], image[500:660, 640:800] = part, turned
    (copy, *_) = metric("repetition").copies(image)
    assert copy.score > 10
    np.testing.assert_allclose(np.median(copy.second - copy.first, axis=0), [580, 400], atol=14)
    heat = metric("repetition").heat(image)
    inside = np.zeros_like(heat, bool)
    inside[5:18, 2:16] = inside[30:43, 38:52] = True
    assert heat[inside].mean() > 0.3
    assert heat[~inside].mean() < 0.01


def test_a_pattern_that_occurs_many_times_is_no_copy(photos):
    tile = cv2.resize(photos["coffee.png"], (100, 100), interpolation=cv2.INTER_AREA)
    tiles = np.tile(tile, (8, 8, 1)) + np.random.default_rng(0).normal(0, 3, (800, 800, 3))
    found = metric("repetition").score([Sample(np.clip(tiles, 0, 255).astype(np.uint8))])[0]
    assert found["repetition_score"] < 10
    assert found["repetition_area"] == 0
