"""Dots are counted, and grain, texture and edges are not."""

import cv2
import numpy as np
import pytest

from benchmarks.artifacts import dotted, first
from uhr.models.metrics.artifacts.speckle import INNER, OUTER, against_surrounding
from uhr.models.metrics.base import Sample
from uhr.models.metrics.registry import metric


def test_the_surrounding_is_the_ring_around_a_pixel():
    plane = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    contrast, deviation = against_surrounding(plane)
    ring = np.ones((OUTER, OUTER), bool)
    edge = (OUTER - INNER) // 2
    ring[edge:-edge, edge:-edge] = False
    half = OUTER // 2
    for y, x in ((6, 6), (20, 30), (33, 43)):
        values = plane[y - half : y + half + 1, x - half : x + half + 1][ring].astype(float)
        assert contrast[y, x] == pytest.approx(abs(plane[y, x] - values.mean()), abs=1e-3)
        assert deviation[y, x] == pytest.approx(values.std(), abs=1e-3)


@pytest.mark.parametrize("sigma", [1, 5, 20])
@pytest.mark.parametrize("size", [0, 1])
def test_grain_of_any_strength_has_no_dots(sigma, size):
    noise = np.random.default_rng(0).normal(0, sigma, (600, 600))
    noise = cv2.GaussianBlur(noise, (0, 0), size) * 3 if size else noise
    image = np.clip(128 + noise, 0, 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert len(metric("speckle").find(image).middles) == 0
    # the strongest grain would hide dots: nothing is said of it
    assert first(metric("speckle"), image) == (None if sigma == 20 else 0)


def test_edges_lines_and_corners_have_no_dots():
    image = np.full((600, 600, 3), 90, np.uint8)
    cv2.rectangle(image, (100, 100), (300, 250), (200, 60, 10), -1)
    cv2.line(image, (50, 500), (550, 380), (250, 250, 250), 1)
    cv2.circle(image, (450, 150), 40, (0, 0, 0), -1)
    assert first(metric("speckle"), image) == 0


def test_each_dot_is_found_once_where_it_is_also_at_the_border_of_strips():
    image = np.full((1300, 300, 3), 100, np.uint8)
    rows = (20, 505, 511, 518, 1022, 1030, 1290)
    places = [(y, x + 17 * number) for number, y in enumerate(rows) for x in (10, 40, 90)]
    for number, (y, x) in enumerate(places):
        # of one channel or of all, bright or dark
        image[y : y + 2, x : x + 2, : 1 + number % 3] += 40 if number % 2 else -40 % 256
    found = metric("speckle").find(image)
    assert found.quiet > 0.9
    middles = sorted(found.middles.tolist())
    np.testing.assert_allclose(middles, [[y + 0.5, x + 0.5] for y, x in places])
    heat = metric("speckle").heat(image)
    assert heat[505 // 16, 27 // 16] > 0
    assert heat[45].max() == 0


def test_the_density_is_that_of_the_dots_also_where_detail_hides_most_of_the_image(photos):
    speckle, rng = metric("speckle"), np.random.default_rng(0)
    for name in ("astronaut.png", "camera.png", "chelsea.png", "retina.jpg"):
        image = photos[name]
        values = [first(speckle, dotted(image, 60, rng, density)) for density in (0, 100, 300, 1000)]
        assert values == sorted(values)
        assert values[0] < 100
        assert values[-1] == pytest.approx(1000, rel=0.25)


def test_fainter_dots_are_found_less_often(photos):
    values = [
        first(metric("speckle"), dotted(photos["retina.jpg"], levels, np.random.default_rng(0), 300))
        for levels in (8, 20, 60)
    ]
    assert values == sorted(values)
    assert values[0] < 10
    assert values[-1] > 250


def test_a_burst_counts_in_its_square_alone():
    image = np.full((1024, 1024, 3), 100, np.uint8)
    image[:256, :256] = dotted(image[:256, :256], 60, np.random.default_rng(0), 500)
    found = metric("speckle").score([Sample(image)])[0]
    assert found["speckle_densest"] == pytest.approx(16 * found["speckle_density"], rel=0.02)
    assert found["speckle_densest"] == pytest.approx(500, rel=0.3)


def test_an_image_in_which_detail_hides_every_dot_has_no_density():
    detail = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    scores = metric("speckle").score([Sample(detail)])[0]
    assert scores == {"speckle_density": None, "speckle_densest": None, "speckle_quiet": 0}
    # a tenth of it is enough, and has its own density
    detail[:60] = dotted(np.full((60, 512, 3), 100, np.uint8), 60, np.random.default_rng(1), 500)
    scores = metric("speckle").score([Sample(detail)])[0]
    assert 0.05 < scores["speckle_quiet"] < 0.12
    assert scores["speckle_density"] == pytest.approx(500, rel=0.4)
