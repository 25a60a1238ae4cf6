"""Filters against their definitions: pywt, the published double loop, a convolution by hand."""

import math

import cv2
import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from uhr.models.ops import filters

sides = st.integers(1, 17)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(sides, sides, st.integers(0, 99))
def test_haar_is_pywts_orthonormal_haar(height, width, seed):
    x = draw(2, 3, height, width, seed=seed)
    low, (horizontal, vertical, diagonal) = pywt.dwt2(x.numpy(), "haar", mode="symmetric")
    bands = filters.haar(x)
    for found, expected in zip(bands, (low, horizontal, vertical, diagonal), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@given(sides, sides, st.integers(0, 99))
def test_haar_inverts_at_any_size_and_keeps_energy_at_even_ones(height, width, seed):
    x = draw(1, 2, height, width, seed=seed)
    bands = filters.haar(x)
    torch.testing.assert_close(filters.haar_inverse(bands, height, width), x, atol=1e-5, rtol=0)
    if height % 2 == width % 2 == 0:
        energy = sum(float((band.double() ** 2).sum()) for band in bands)
        assert energy == pytest.approx(float((x.double() ** 2).sum()), rel=1e-5)


@given(sides, sides)
def test_the_haar_low_pass_is_a_projection_onto_block_means(height, width):
    x = draw(1, 2, height, width)
    low = filters.haar_low_pass(x)
    torch.testing.assert_close(filters.haar_low_pass(low), low, atol=1e-6, rtol=0)
    means = torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True)
    torch.testing.assert_close(low[..., ::2, ::2], means, atol=1e-6, rtol=0)


def butterworth_by_loops(x: np.ndarray, cutoff: float, order: int) -> np.ndarray:
    """The formula of HiFlow's code on the centred spectrum, term by term; even sizes."""
    height, width = x.shape[-2:]
    gain = np.empty((height, width))
    for h in range(height):
        for w in range(width):
            square = (2 * h / height - 1) ** 2 + (2 * w / width - 1) ** 2
            gain[h, w] = 1 / (1 + (square / cutoff**2) ** order)
    spectrum = np.fft.fftshift(np.fft.fft2(x), axes=(-2, -1)) * gain
    return np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))).real


@given(st.integers(1, 10), st.integers(1, 10), st.sampled_from([0.2, 0.4, 1.0]), st.sampled_from([2, 4]))
def test_butterworth_is_the_published_formula(half_height, half_width, cutoff, order):
    x = draw(2, 3, 2 * half_height, 2 * half_width)
    found = filters.butterworth_low_pass(x, cutoff, order)
    np.testing.assert_allclose(found.numpy(), butterworth_by_loops(x.numpy(), cutoff, order), atol=1e-5)


@given(sides, sides)
def test_butterworth_keeps_the_mean_and_halves_what_is_at_the_cutoff(height, width):
    x = draw(1, 2, height, width)
    found = filters.butterworth_low_pass(x, 0.3)
    torch.testing.assert_close(found.mean((-2, -1)), x.mean((-2, -1)), atol=1e-6, rtol=0)
    wave = torch.cos(2 * math.pi * 4 * torch.arange(32) / 32).repeat(8, 1)[None, None]
    torch.testing.assert_close(filters.butterworth_low_pass(wave, 0.25), wave / 2, atol=1e-5, rtol=0)


@settings(max_examples=30)
@given(st.integers(3, 12), st.integers(3, 12), st.floats(0.1, 3), st.integers(1, 2), st.floats(-1, 3))
def test_sharpening_is_the_image_plus_what_a_mirrored_gaussian_takes_from_it(
    height, width, sigma, radius, amount
):
    x = draw(1, 2, height, width)
    line = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    blurred = np.stack([ndimage.convolve(c, kernel, mode="mirror") for c in x[0].numpy().astype(np.float64)])
    expected = x[0].numpy() + amount * (x[0].numpy() - blurred)
    found = filters.sharpen(x, sigma, amount, radius)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)
    assert torch.equal(found, filters.sharpen(x, sigma, amount, radius))


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 20), st.integers(0, 20))
def test_enlarging_is_opencvs_cubic_and_shrinking_is_pillows(height, width, taller, wider):
    x = draw(1, 1, height, width)
    large = filters.bicubic(x, height + taller, width + wider)
    expected = cv2.resize(x[0, 0].numpy(), (width + wider, height + taller), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(large[0, 0].numpy(), expected, atol=1e-4)
    back = filters.bicubic(large, 1 + height // 2, 1 + width // 2)
    image = Image.fromarray(large[0, 0].numpy())
    expected = np.asarray(image.resize((1 + width // 2, 1 + height // 2), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(back[0, 0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_each_filter_computes_in_float32_and_gives_the_dtype_back(dtype):
    x = draw(1, 2, 6, 10).to(dtype)
    for use in (
        filters.haar_low_pass, filters.sharpen,
        lambda t: filters.butterworth_low_pass(t, 0.4), lambda t: filters.bicubic(t, 9, 20),
    ):  # fmt: skip
        found = use(x)
        assert found.dtype == dtype
        assert torch.equal(found, use(x.float()).to(dtype))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(1, 90))
def test_lanczos_is_pillows_whether_it_enlarges_or_shrinks(height, width, taller, wider):
    x = draw(1, 1, height, width)
    expected = Image.fromarray(x[0, 0].numpy()).resize((wider, taller), Image.Resampling.LANCZOS)
    found = filters.lanczos(x, taller, wider)
    np.testing.assert_allclose(found[0, 0].numpy(), np.asarray(expected), atol=2e-5)
    constant = filters.lanczos(torch.full((1, 2, height, width), 0.3), taller, wider)
    torch.testing.assert_close(constant, torch.full((1, 2, taller, wider), 0.3), atol=1e-6, rtol=0)
