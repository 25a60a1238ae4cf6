"""Estimate the factor by which an image was enlarged.

Interpolation leaves a cliff in the spectrum at 1 / (2 ratio) cycles per pixel; a lens, or the decay of
natural detail (power ~ 1 / f^2), leaves a slope. Copied pixels (nearest neighbour) leave no cliff but equal
neighbours at a fixed period. Both are searched for in the tiles with most detail.
"""

from __future__ import annotations

import numpy as np

TILES = 8
"""Number of tiles that are used: those with the most detail. Their median ignores a caption or a frame at
native resolution."""

_GRID = 60
"""Tiles start at multiples of this many px. It is a multiple of 2, 3, 4, 5 and 6, so that a pattern with such
a period has the same phase in every tile."""

_CLIFF = 6.5
"""dB by which the band above a cutoff must be below the band under it, both weighted by f^2. Of real images
at native size, shrunk by area and saved as JPEG 75 to 95, 97 of 100 stay below this value.
"""

_ALMOST = 0.8
"""Of all cliffs with at least this share of the steepest, the one at the lowest frequency is used."""

_DROP = 7.0
"""dB below the band under the cliff at which the cutoff is read. Unbiased for bicubic and Lanczos."""

_COPIED = 0.5
"""Two neighbouring columns are copies if their mean step is below this share of the largest in the period."""


def upscale_ratio(gray: np.ndarray) -> float:
    """Estimate the linear enlargement, >= 1, of a gray image, uint8 [H, W]; 1.0 if none is detected.

    An image without detail has no cliff, and gives 1.0. A strong blur, a lens that resolves only half of the
    grid, or a smooth repeating pattern cannot be distinguished from an enlargement: the result is the ratio
    that would explain it. Noise or grain added afterwards fills the empty band and hides the cliff.
    Enlargements by less than 1.5 are rarely detected, and bilinear ones may be underestimated by up to 40 %.
    """
    tiles = _detailed_tiles(gray)
    if not tiles:
        return 1.0
    copied = _copy_ratio(tiles)
    return copied if copied > 1 else _cliff_ratio(*_spectrum(tiles))


def _detailed_tiles(gray: np.ndarray) -> list[np.ndarray]:
    """Return the tiles with the largest mean step between neighbours, float32 [N, N]; N is 256 px, less in
    small images.
    """
    import cv2

    size = next((n for n in (256, 128, 64) if n <= min(gray.shape)), 0)
    if size == 0:
        return []
    stride = max(_GRID, size // _GRID * _GRID)
    starts = [np.arange(0, extent - size + 1, stride) for extent in gray.shape]
    rows = gray[::4]  # every fourth row is enough to find the detail
    steps = cv2.absdiff(rows[:, 1:], rows[:, :-1])
    sums = cv2.integral(steps)
    top, left = starts[0] // 4, starts[1]
    low, right = top + size // 4 - 1, left + size - 1
    detail = (
        sums[np.ix_(low, right)]
        - sums[np.ix_(top, right)]
        - sums[np.ix_(low, left)]
        + sums[np.ix_(top, left)]
    )
    order = np.argsort(-detail, axis=None, kind="stable")[:TILES]
    corners = [(starts[0][i // len(left)], starts[1][i % len(left)]) for i in order]
    return [gray[y : y + size, x : x + size].astype(np.float32) for y, x in corners]


def _spectrum(tiles: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies [F] in cycles per pixel and power in dB weighted by f^2 [F], along the axis with
    more power.

    The spectra are one-dimensional, as interpolation works along the axes, with a Hann window, and averaged
    over the lines of a tile.
    """
    size = len(tiles[0])
    window = np.hanning(size).astype(np.float32)
    frequency = np.arange(1, size // 2 + 1) / size
    weight = 20 * np.log10(frequency / 0.05)
    best = np.full(len(frequency), -np.inf)
    for axis in (0, 1):
        stack = np.stack([tile if axis else tile.T for tile in tiles])
        lines = (stack - stack.mean(axis=2, keepdims=True)) * window
        power = (np.abs(np.fft.rfft(lines, axis=2)) ** 2).mean(axis=1)[:, 1:] / (window**2).sum()
        level = np.median(10 * np.log10(power + 1e-4), axis=0) + weight
        if level.mean() > best.mean():
            best = level
    return frequency, best


def _cliff_ratio(frequency: np.ndarray, level: np.ndarray) -> float:
    """Return 0.5 / cutoff at the steepest cliff between neighbouring bands; 1.0 if none is steep enough."""
    cutoffs = 0.5 / 2 ** np.arange(0.3125, 3.01, 1 / 16)
    under = np.array([_mean(frequency, level, 0.4 * c, 0.85 * c) for c in cutoffs])
    above = np.array([_mean(frequency, level, 1.15 * c, min(1.8 * c, 0.501)) for c in cutoffs])
    cliffs = under - above
    # a band that rises to its end is the noise floor of rounding and JPEG, which hides part of the cliff
    floor = _mean(frequency, level, 0.44, 0.501) - _mean(frequency, level, 0.3, 0.36)
    if cliffs.max() < _CLIFF - 0.5 * np.clip(floor, 0, 3.3):
        return 1.0
    # bilinear passes the next band as a second hill: the cliff before it is used
    cliff = int(np.flatnonzero(cliffs >= _ALMOST * cliffs.max())[-1])
    smooth = np.convolve(np.pad(level, 2, mode="edge"), np.full(5, 0.2), "valid")
    edge = under[cliff] - _DROP
    below = np.flatnonzero((smooth <= edge) & (frequency >= cutoffs[cliff] / 2))
    if len(below) == 0 or below[0] == 0:
        return float(0.5 / cutoffs[cliff])
    i = below[0]
    share = np.clip((smooth[i - 1] - edge) / max(smooth[i - 1] - smooth[i], 1e-9), 0, 1)
    return float(max(1.0, 0.5 / (frequency[i - 1] + share * (frequency[i] - frequency[i - 1]))))


def _mean(frequency: np.ndarray, level: np.ndarray, low: float, high: float) -> float:
    inside = (frequency >= low) & (frequency < high)
    return float(level[inside].mean()) if inside.any() else np.nan


def _copy_ratio(tiles: list[np.ndarray]) -> float:
    """Return the enlargement by copied pixels, 1.5 or 2 to 6, if both rows and columns show it; else 1.0."""
    ratios = []
    for axis in (0, 1):
        steps = np.mean([np.abs(np.diff(tile, axis=axis)).mean(axis=1 - axis) for tile in tiles], axis=0)
        ratio = 1.0
        for period in (2, 3, 4, 5, 6):
            means = np.array([steps[phase::period].mean() for phase in range(period)])
            copies = int((means < _COPIED * means.max()).sum())
            if copies == period - 1 or (period == 3 and copies == 1):
                ratio = max(ratio, period / (period - copies))
        ratios.append(ratio)
    return min(ratios)
