"""The fused pass gives the published numbers: flat_fraction to the bit, entropy to 1e-9."""

import os
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from skimage.measure import shannon_entropy

from uhr.curate.measures import gray_pass
from uhr.curate.measures.gray_pass import FLAT_VARIANCE, measure, published_variance


def published_flat_fraction(gray: np.ndarray, patch: int = 240, threshold: float = 800) -> float:
    """The filter of UltraFlux's `tools/filtering_pipeline.py`, step by step: float64, patch by patch."""
    height, width = gray.shape
    flat = total = 0
    for y in range(0, height - patch + 1, patch):
        for x in range(0, width - patch + 1, patch):
            piece = gray[y : y + patch, x : x + patch]
            across = cv2.Sobel(piece, cv2.CV_64F, 1, 0, ksize=3)
            down = cv2.Sobel(piece, cv2.CV_64F, 0, 1, ksize=3)
            total += 1
            flat += np.var(np.sqrt(across**2 + down**2)) < threshold
    return flat / total if total else 0.0


@st.composite
def grays(draw: st.DrawFn, largest: int = 130) -> np.ndarray:
    """Gray images from constant over smooth to white noise, uint8 [H, W]."""
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    y, x = np.mgrid[0:height, 0:width]
    smooth = 128 + 100 * np.sin(x / draw(st.floats(1, 40))) * np.cos(y / draw(st.floats(1, 40)))
    noise = rng.normal(0, draw(st.sampled_from((0, 3, 20, 90))), (height, width))
    return np.clip(smooth * draw(st.sampled_from((0, 0.3, 1))) + noise, 0, 255).astype(np.uint8)


@given(gray=grays(), patch=st.integers(3, 64), threshold=st.floats(0, 3000))
def test_flat_fraction_is_the_published_one_for_any_patch_and_threshold(gray, patch, threshold) -> None:
    assert measure(gray, patch).flat_fraction(threshold) == published_flat_fraction(gray, patch, threshold)


@given(gray=grays(), patch=st.integers(3, 64))
def test_patch_variances_are_the_published_ones(gray, patch) -> None:
    found = measure(gray, patch)
    for row, column in np.ndindex(found.variance.shape):
        piece = gray[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        expected = published_variance(piece)
        assert found.variance[row, column] == pytest.approx(
            expected, rel=1e-5, abs=2e-6 * found.mean[row, column] ** 2
        )


@given(gray=grays())
def test_a_threshold_that_a_patch_hits_exactly_is_decided_as_published(gray) -> None:
    patch = 12
    assume(min(gray.shape) >= patch)
    exact = published_variance(gray[:patch, :patch])
    for threshold in (exact, np.nextafter(exact, np.inf)):
        assert measure(gray, patch).flat_fraction(threshold) == published_flat_fraction(
            gray, patch, threshold
        )


@given(gray=grays())
def test_entropy_is_scikit_images(gray) -> None:
    assert measure(gray).entropy() == pytest.approx(shannon_entropy(gray), abs=1e-9)


@given(gray=grays())
def test_laplacian_variance_is_opencvs(gray) -> None:
    expected = cv2.Laplacian(gray, cv2.CV_64F, ksize=1).var()
    assert measure(gray).laplacian_var == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(gray=grays())
def test_the_histogram_counts_every_pixel(gray) -> None:
    found = measure(gray)
    assert np.array_equal(found.histogram, np.bincount(gray.ravel(), minlength=256))
    assert found.luma_mean() == pytest.approx(gray.mean())
    assert found.fraction(slice(0, 16)) == pytest.approx((gray < 16).mean())


@given(gray=grays())
def test_blockiness_is_the_mean_step_on_the_grid_over_the_mean_step_inside(gray) -> None:
    steps = [np.abs(np.diff(gray.astype(int), axis=axis)) for axis in (0, 1)]
    on = [np.arange(1, gray.shape[axis]) % 8 == 0 for axis in (0, 1)]
    grid = np.concatenate([steps[0][on[0]].ravel(), steps[1][:, on[1]].ravel()])
    inside = np.concatenate([steps[0][~on[0]].ravel(), steps[1][:, ~on[1]].ravel()])
    assume(grid.size and inside.any())
    assert measure(gray).blockiness == pytest.approx(grid.mean() / inside.mean())


def test_blockiness_rises_as_jpeg_quality_falls() -> None:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (400, 600), dtype=np.uint8), (0, 0), 3)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    values = [measure(image).blockiness]
    for quality in (60, 20, 5):
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        values.append(measure(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)).blockiness)
    assert values == sorted(values)
    assert values[0] == pytest.approx(1, abs=0.05)
    assert values[-1] > 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (239, 5000), (240, 240), (3, 17)])
def test_odd_shapes_are_measured(shape) -> None:
    gray = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    found = measure(gray)
    assert found.flat_fraction() == published_flat_fraction(gray)
    assert found.laplacian_var == pytest.approx(cv2.Laplacian(gray, cv2.CV_64F, ksize=1).var())
    assert np.isfinite(found.blockiness)


def test_an_image_without_a_whole_patch_is_not_flat() -> None:
    assert measure(np.zeros((239, 1000), np.uint8)).flat_fraction() == 0.0


def test_a_constant_image_is_flat_and_has_no_entropy() -> None:
    found = measure(np.full((480, 480), 9, np.uint8))
    assert (found.flat_fraction(), found.entropy(), found.laplacian_var, found.blockiness) == (
        1.0,
        0.0,
        0.0,
        1.0,
    )


def test_the_most_violent_image_overflows_nothing() -> None:
    board = np.kron(np.indices((600, 600)).sum(axis=0) % 2, np.ones((4, 4), int)).astype(np.uint8) * 255
    found = measure(board, gray_pass.LARGEST_PATCH)
    assert found.variance[0, 0] == pytest.approx(published_variance(board[:1024, :1024]), rel=1e-5)
    assert found.laplacian_var == pytest.approx(cv2.Laplacian(board, cv2.CV_64F, ksize=1).var())


def test_a_view_with_gaps_is_measured_like_its_copy() -> None:
    wide = np.random.default_rng(2).integers(0, 256, (300, 900), dtype=np.uint8)
    view = wide[:, ::3]
    assert measure(view).laplacian_var == measure(view.copy()).laplacian_var


def test_the_pass_lets_other_threads_run() -> None:
    gray = np.zeros((6000, 6000), np.uint8)
    measure(gray)
    ticks, done = [], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(None)
            done.wait(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        before = len(ticks)
        measure(gray)
        during = len(ticks) - before
    finally:
        done.set()
        thread.join()
    assert during >= 2


def test_the_pass_compiles_where_no_cache_folder_can_be_written() -> None:
    script = (
        "from uhr.curate.measures import gray_pass; import numpy as np\n"
        "print(gray_pass.measure(np.eye(300, dtype=np.uint8)).entropy() > 0)"
    )
    # of the places that numba knows only the one named in the environment is left, and none is named
    environment = os.environ | {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    environment.pop("NUMBA_CACHE_DIR", None)
    call = [sys.executable, "-c", script]
    result = subprocess.run(call, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "True"


def test_published_constants_are_the_papers() -> None:
    assert (gray_pass.PATCH, FLAT_VARIANCE) == (240, 800)
