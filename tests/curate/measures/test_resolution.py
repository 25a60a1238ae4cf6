"""The estimated enlargement: right for a known band limit, quiet where there is nothing to see."""

import cv2
import numpy as np
import pytest

from uhr.curate.measures.resolution import upscale_ratio

INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}


def natural(height: int, width: int, seed: int = 0, cutoff: float = 1.0) -> np.ndarray:
    """Noise with the power law of natural images, 1 / f^2, up to `cutoff` of the grid's limit on each axis.

    uint8 [H, W].
    """
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    spectrum /= np.maximum(np.hypot(x, y), 1 / width)
    spectrum *= (np.abs(x) < 0.5 * cutoff) & (np.abs(y) < 0.5 * cutoff)
    image = np.fft.irfft2(spectrum, s=(height, width))
    return np.clip(128 + 48 * image / image.std(), 0, 255).round().astype(np.uint8)


def jpeg(gray: np.ndarray, quality: int) -> np.ndarray:
    data = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)


@pytest.mark.parametrize("ratio", [1.6, 2, 2.5, 3, 4, 6])
def test_a_band_limit_gives_its_ratio(ratio) -> None:
    assert upscale_ratio(natural(1024, 1536, cutoff=1 / ratio)) == pytest.approx(ratio, rel=0.12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("quality", [95, 85, 75])
def test_detail_up_to_the_grid_is_native_through_jpeg(seed, quality) -> None:
    assert upscale_ratio(jpeg(natural(800, 1200, seed), quality)) == 1.0


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("quality", [95, 85])
def test_an_enlarged_image_has_its_ratio_roughly(ratio, name, quality) -> None:
    small = natural(1200 // ratio, 1800 // ratio, seed=5)
    large = cv2.resize(small, None, fx=ratio, fy=ratio, interpolation=INTERPOLATIONS[name])
    found = upscale_ratio(jpeg(large, quality))
    # bilinear lets a second hill of the spectrum through, here as high as the first: it may pass for detail
    least = 0.6 if name == "bilinear" else 0.8
    assert least * ratio < found < 1.4 * ratio


@pytest.mark.parametrize("ratio", [2, 3, 4, 5])
@pytest.mark.parametrize("quality", [95, 85])
def test_copied_pixels_give_the_ratio_exactly(ratio, quality) -> None:
    small = natural(1200 // ratio, 1800 // ratio, seed=6)
    large = cv2.resize(small, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_NEAREST)
    assert upscale_ratio(jpeg(large, quality)) == ratio


def test_copied_pixels_at_one_and_a_half_are_seen() -> None:
    large = cv2.resize(natural(600, 900), (1350, 900), interpolation=cv2.INTER_NEAREST)
    assert upscale_ratio(large) == 1.5


@pytest.mark.parametrize(
    "gray",
    [
        np.zeros((500, 700), np.uint8),
        np.tile(np.linspace(0, 255, 900, dtype=np.uint8), (600, 1)),
        np.random.default_rng(0).integers(0, 256, (600, 600), dtype=np.uint8),
        np.zeros((20, 20), np.uint8),
        np.zeros((1, 5000), np.uint8),
    ],
    ids=["black", "ramp", "noise", "tiny", "line"],
)
def test_where_nothing_indicates_an_enlargement_the_ratio_is_one(gray) -> None:
    assert upscale_ratio(gray) == 1.0


def test_a_frame_and_a_caption_at_full_resolution_do_not_hide_an_enlargement() -> None:
    large = cv2.resize(natural(600, 900, seed=3), None, fx=2, fy=2, interpolation=cv2.INTER_LANCZOS4)
    large[:60] = large[-60:] = 0
    cv2.putText(large, "at full resolution", (60, 110), cv2.FONT_HERSHEY_SIMPLEX, 1, 255, 2, cv2.LINE_AA)
    assert upscale_ratio(jpeg(large, 90)) > 1.6


def test_turning_an_image_hardly_changes_its_ratio() -> None:
    large = cv2.resize(natural(500, 800, seed=4), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    assert upscale_ratio(np.ascontiguousarray(large.T)) == pytest.approx(upscale_ratio(large), rel=0.15)
