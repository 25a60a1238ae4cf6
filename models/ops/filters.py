"""Filters on images and latents that several samplers share: pure functions on [..., H, W], any H and W.

All compute in float32 (half-precision FFTs exist only for some sizes on GPUs) and return the input's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Bands(NamedTuple):
    """One level of a 2-D wavelet transform, each [..., ceil(H/2), ceil(W/2)].

    `horizontal` is the detail between rows (pywt's cH), which horizontal edges have; `vertical` is that
    between columns; `diagonal` is both.
    """

    low: torch.Tensor
    horizontal: torch.Tensor
    vertical: torch.Tensor
    diagonal: torch.Tensor


def haar(x: torch.Tensor) -> Bands:
    """Orthonormal Haar transform, one level: `low` is half the sum of each 2 x 2 block. Energy is preserved
    if H and W are even. An odd last row or column is repeated first (pywt's mode "symmetric")."""
    even = _repeat_last(x.float())
    top, bottom = even[..., 0::2, :], even[..., 1::2, :]
    a, b, c, d = top[..., 0::2], top[..., 1::2], bottom[..., 0::2], bottom[..., 1::2]
    parts = (a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d)
    return Bands(*((part / 2).to(x.dtype) for part in parts))


def haar_inverse(bands: Bands, height: int, width: int) -> torch.Tensor:
    """Invert `haar`: [..., H, W] from its bands. `height` and `width` are H and W, from which it follows
    whether a row or column was repeated."""
    low, rows, columns, both = (band.float() for band in bands)
    whole = low.new_empty(*low.shape[:-2], 2 * low.shape[-2], 2 * low.shape[-1])
    whole[..., 0::2, 0::2] = low + rows + columns + both
    whole[..., 0::2, 1::2] = low + rows - columns - both
    whole[..., 1::2, 0::2] = low - rows + columns - both
    whole[..., 1::2, 1::2] = low - rows - columns + both
    return (whole[..., :height, :width] / 2).to(bands.low.dtype)


def haar_low_pass(x: torch.Tensor) -> torch.Tensor:
    """Projection onto the low Haar band: every 2 x 2 block becomes its mean."""
    low = haar(x).low
    none = torch.zeros_like(low)
    return haar_inverse(Bands(low, none, none, none), *x.shape[-2:])


def butterworth_low_pass(x: torch.Tensor, cutoff: float, order: int = 4) -> torch.Tensor:
    """Butterworth low-pass over the last two axes by FFT: gain 1 / (1 + (d^2 / cutoff^2)^order), in (0, 1].

    d^2 is the sum of squares of the two frequencies as fractions of the Nyquist frequency, so that `cutoff`
    is in (0, sqrt 2]. HiFlow's LP (2504.06232, eq. 8; cutoff 0.4 in the paper, 0.2 in the code, order 4). On
    even sizes this is its code's formula; on odd sizes that one misses the centre frequency, and this does
    not.
    """
    assert cutoff > 0, cutoff
    height, width = x.shape[-2:]
    rows = 2 * torch.fft.fftfreq(height, device=x.device, dtype=torch.float32)
    columns = 2 * torch.fft.rfftfreq(width, device=x.device, dtype=torch.float32)
    squares = rows[:, None] ** 2 + columns[None, :] ** 2
    gain = 1 / (1 + (squares / cutoff**2) ** order)
    return torch.fft.irfft2(torch.fft.rfft2(x.float()) * gain, s=(height, width)).to(x.dtype)


def gaussian_blur(x: torch.Tensor, sigma: float, radius: int) -> torch.Tensor:
    """Blur x [B, C, H, W] by a separable Gaussian of 2 * radius + 1 taps that sum to 1, reflected at the
    borders. `sigma` is in px."""
    assert sigma > 0, sigma
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)
    taps = torch.exp(-(offsets**2) / (2 * sigma**2))
    taps, channels = taps / taps.sum(), x.shape[1]
    padded = F.pad(x.float(), (radius, radius, radius, radius), mode="reflect")
    rows = F.conv2d(padded, taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels).to(x.dtype)


def sharpen(x: torch.Tensor, sigma: float = 1.0, amount: float = 1.0, radius: int = 1) -> torch.Tensor:
    """Sharpen x [B, C, H, W] by an unsharp mask: x + amount * (x - blur(x)), not clipped.

    HiFlow draws sigma from (0.1, 2) at every call, so that no two of its runs agree; here it is fixed.
    """
    detail = x.float() - gaussian_blur(x.float(), sigma, radius)
    return (x.float() + amount * detail).to(x.dtype)


def bicubic(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize pixels or latents: [B, C, h, w] -> [B, C, height, width]; pixels are areas (align_corners off).

    An enlargement uses torch's (and OpenCV's) kernel with a = -0.75, as HiFlow and the others do; if an axis
    shrinks, the anti-aliased kernel with a = -0.5 is used, as in Pillow. Overshoots are not clipped.
    """
    shrinks = height < x.shape[-2] or width < x.shape[-1]
    found = F.interpolate(x.float(), (height, width), mode="bicubic", align_corners=False, antialias=shrinks)
    return found.to(x.dtype)


def lanczos(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize like `bicubic`, by the Lanczos kernel with three lobes: Pillow's LANCZOS, with which diffusers'
    image-to-image pipelines resize. The kernel is wider if an axis shrinks, and normalised at borders."""
    return _resampled(_resampled(x.float(), -2, height), -1, width).to(x.dtype)


def _resampled(x: torch.Tensor, axis: int, length: int, lobes: int = 3) -> torch.Tensor:
    given = x.shape[axis]
    stretch = max(given / length, 1.0)
    reach, centre = lobes * stretch, (torch.arange(length, dtype=torch.float64) + 0.5) * given / length
    places = torch.floor(centre - reach + 0.5)[:, None] + torch.arange(math.ceil(2 * reach) + 1)
    offsets = (places + 0.5 - centre[:, None]) / stretch
    weights = torch.sinc(offsets) * torch.sinc(offsets / lobes) * (offsets.abs() < lobes)
    weights = weights * ((places >= 0) & (places < given))
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(x.device, x.dtype)
    indices, shape = places.long().clamp(0, given - 1).to(x.device), [1] * x.ndim
    shape[axis] = length
    found = torch.zeros_like(x.index_select(axis, indices[:, 0]))
    for index, weight in zip(indices.T, weights.T, strict=True):
        found += x.index_select(axis, index) * weight.reshape(shape)
    return found


ENLARGEMENTS: Mapping[str, Callable[[torch.Tensor, int, int], torch.Tensor]] = {
    "bicubic": bicubic,
    "lanczos": lanczos,
}
"""Methods of resizing an image, by name."""


def _repeat_last(x: torch.Tensor) -> torch.Tensor:
    if x.shape[-2] % 2:
        x = torch.cat([x, x[..., -1:, :]], dim=-2)
    if x.shape[-1] % 2:
        x = torch.cat([x, x[..., -1:]], dim=-1)
    return x
