"""Measure flatness, entropy, exposure and sharpness exactly, in one pass over the gray image.

The pass is compiled by numba and releases the interpreter lock. Each row is visited once, while it is in the
L1 cache. All sums are integers, except for the square root in float32, whose rounding error `flat_fraction`
corrects.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from uhr.pixels.compiled import compiled

PATCH = 240
"""Side of a flatness patch in px, as published (UltraFlux 2511.18050, `tools/filtering_pipeline.py`)."""

FLAT_VARIANCE = 800.0
"""A patch is flat if the variance of its gradient magnitude is smaller (same source)."""

LARGEST_PATCH = 1024
"""px. The sum over a row of a patch, up to 2 * 1020^2 per pixel, must fit into 32 bits."""

_SQRT_ERROR = 4e-6
"""Bound of the relative error of a squared mean, from float32 square roots summed along a row."""

_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class GrayMeasures:
    """Measurements of a gray image.

    Attributes:
        gray: the image, uint8 [H, W].
        patch: side of a patch in px.
        histogram: of gray, int64 [256].
        variance, mean: of the Sobel gradient magnitude in each complete patch from the top left, float64
            [rows, columns].
        laplacian_var: variance of the Laplacian of the whole image.
        blockiness: mean step across the 8 x 8 grid over the mean step inside it, >= 0.
    """

    gray: np.ndarray
    patch: int
    histogram: np.ndarray
    variance: np.ndarray
    mean: np.ndarray
    laplacian_var: float
    blockiness: float

    def flat_fraction(self, threshold: float = FLAT_VARIANCE) -> float:
        """Return the share of patches with a variance below `threshold`, in [0, 1]; 0 without a complete
        patch.

        A variance that rounding could move across the threshold is computed again as published.
        """
        if self.variance.size == 0:
            return 0.0
        flat = self.variance < threshold
        doubtful = np.abs(self.variance - threshold) <= _SQRT_ERROR * self.mean**2 + 1e-6
        for row, column in np.argwhere(doubtful):
            y, x = row * self.patch, column * self.patch
            flat[row, column] = (
                published_variance(self.gray[y : y + self.patch, x : x + self.patch]) < threshold
            )
        return float(flat.mean())

    def entropy(self) -> float:
        """Shannon entropy of the gray histogram in bits, in [0, 8]."""
        share = self.histogram[self.histogram > 0] / self.histogram.sum()
        return float(-(share * np.log2(share)).sum() + 0.0)

    def luma_mean(self) -> float:
        """Mean gray, in [0, 255]."""
        return float(self.histogram @ np.arange(256) / self.histogram.sum())

    def fraction(self, *levels: slice) -> float:
        """Return the share of pixels whose gray value is in one of these slices of 0..255."""
        return float(sum(self.histogram[level].sum() for level in levels) / self.histogram.sum())


def published_variance(patch: np.ndarray) -> float:
    """Variance of the Sobel gradient magnitude of a uint8 patch, in float64 as in the published script."""
    import cv2

    across = cv2.Sobel(patch, cv2.CV_64F, 1, 0, ksize=3)
    down = cv2.Sobel(patch, cv2.CV_64F, 0, 1, ksize=3)
    return float(np.var(np.sqrt(across**2 + down**2)))


def measure(gray: np.ndarray, patch: int = PATCH) -> GrayMeasures:
    """Measure a gray image, uint8 [H, W], with patches of `patch` px, 3 to LARGEST_PATCH."""
    assert 3 <= patch <= LARGEST_PATCH, f"patches of {patch} px"
    gray = np.ascontiguousarray(gray)
    height, width = gray.shape
    rows, columns = height // patch, width // patch
    histogram = np.zeros(256, np.int64)
    pairs = np.zeros((2, 1 << 16), np.uint32)
    squares = np.zeros((rows, columns), np.int64)
    magnitudes = np.zeros((rows, columns), np.float64)
    sums = np.zeros(6, np.int64)
    _pass(gray, patch, pairs, histogram, squares, magnitudes, sums)
    by_second = pairs.sum(axis=0, dtype=np.int64).reshape(256, 256)
    histogram += by_second.sum(axis=0) + by_second.sum(axis=1)
    laplacian, laplacian_squares, on_grid, inside, n_grid, n_inside = (int(value) for value in sums)
    count = gray.size
    mean = magnitudes / patch**2
    return GrayMeasures(
        gray,
        patch,
        histogram,
        np.maximum(squares / patch**2 - mean**2, 0.0),
        mean,
        (laplacian_squares - laplacian**2 / count) / count,
        _ratio(on_grid, n_grid, inside, n_inside),
    )


def _ratio(on_grid: int, n_grid: int, inside: int, n_inside: int) -> float:
    """Mean step on the grid over the mean step inside it. If all steps inside are 0, their sum is taken as
    1.
    """
    if n_grid == 0 or on_grid == 0 == inside:
        return 1.0
    return (on_grid / n_grid) / (max(inside, 1) / n_inside)


def warm() -> None:
    """Compile the pass, or load it from numba's cache. Called once in a worker, before its first image."""
    measure(np.zeros((16, 16), np.uint8), 8)


_compiled = functools.partial(compiled, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


@_compiled
def _pass(gray, patch, pairs, histogram, squares, magnitudes, sums):
    height, width = gray.shape
    rows, columns = squares.shape
    smooth = np.empty(width, np.int16)
    step = np.empty(width, np.int16)
    for y in range(height):
        row = gray[y]
        above = gray[y - 1 if y > 0 else min(1, height - 1)]
        below = gray[y + 1 if y < height - 1 else max(height - 2, 0)]
        _count(row, pairs, histogram)
        _laplacian(above, row, below, sums)
        _steps(above, row, y, sums)
        patch_row = y // patch
        if patch_row < rows:
            # the border is reflected inside the patch, not taken from its neighbours
            inner = y - patch_row * patch
            _separate(
                gray[y + 1] if inner == 0 else above,
                row,
                gray[y - 1] if inner == patch - 1 else below,
                smooth,
                step,
            )
            for column in range(columns):
                begin, end = column * patch, (column + 1) * patch
                _gradients(
                    smooth[begin:end], step[begin:end], squares[patch_row], magnitudes[patch_row], column
                )


@_compiled
def _count(row, pairs, histogram):
    """Count pairs of neighbours by their 16 bits, first | second << 8, and an odd last pixel by itself.

    Half as many increments as pixels. Two tables: an increment waits for the one before it in its table if
    both are of the same pair.
    """
    half = len(row) // 4 * 2
    first, second = row[:half], row[half : 2 * half]
    one, two = pairs
    for x in range(half // 2):
        one[np.uint32(first[2 * x]) | np.uint32(first[2 * x + 1]) << np.uint32(8)] += np.uint32(1)
        two[np.uint32(second[2 * x]) | np.uint32(second[2 * x + 1]) << np.uint32(8)] += np.uint32(1)
    for x in range(2 * half, len(row)):
        histogram[row[x]] += 1


@_compiled
def _laplacian(above, row, below, sums):
    """cv2.Laplacian(ksize=1): the sum of four neighbours minus four times the pixel, borders reflected."""
    width = len(row)
    last = width - 1
    for x in range(0, width, max(last, 1)):
        left = row[x - 1 if x > 0 else min(1, last)]
        right = row[x + 1 if x < last else max(last - 1, 0)]
        value = np.int64(above[x]) + below[x] + left + right - 4 * np.int64(row[x])
        sums[0] += value
        sums[1] += value * value
    for begin in range(1, last, _CHUNK):
        # sliced, so that every index starts at 0: only such loops are vectorized
        end = min(begin + _CHUNK, last)
        up, down, middle = above[begin:end], below[begin:end], row[begin:end]
        left, right = row[begin - 1 : end - 1], row[begin + 1 : end + 1]
        total = np.int32(0)
        total_squares = np.int32(0)
        for x in range(len(middle)):
            around = np.int32(up[x]) + np.int32(down[x]) + np.int32(left[x]) + np.int32(right[x])
            value = np.int32(around - np.int32(4) * np.int32(middle[x]))
            total = np.int32(total + value)
            total_squares = np.int32(total_squares + np.int32(value * value))
        sums[0] += total
        sums[1] += total_squares


@_compiled
def _absolute(one, other):
    """Sum of |one - other| over two rows of bytes of the same length."""
    total = np.int32(0)
    for x in range(len(one)):
        total = np.int32(total + abs(np.int32(np.int32(one[x]) - np.int32(other[x]))))
    return total


@_compiled
def _steps(above, row, y, sums):
    """Add the absolute gray steps to the left neighbour and to the row above, separately for steps on the
    lines of the 8 x 8 grid and inside it.
    """
    width = len(row)
    across = _absolute(row[1:], row[: width - 1])
    n_grid = (width - 1) // 8
    on_grid = _absolute(row[8::8], row[7 : width - 1 : 8])
    sums[2] += on_grid
    sums[3] += across - on_grid
    sums[4] += n_grid
    sums[5] += width - 1 - n_grid
    if y > 0:
        on = 0 if y % 8 == 0 else 1
        sums[2 + on] += _absolute(row, above)
        sums[4 + on] += width


@_compiled
def _separate(above, row, below, smooth, step):
    """The vertical halves of the Sobel kernels: 1 2 1 into `smooth`, -1 0 1 into `step`."""
    for x in range(len(row)):
        smooth[x] = np.int16(np.int16(above[x]) + np.int16(2) * np.int16(row[x]) + np.int16(below[x]))
        step[x] = np.int16(np.int16(below[x]) - np.int16(above[x]))


@_compiled
def _gradients(smooth, step, squares, magnitudes, column):
    """Add one row of one patch to the sums of the squared gradient magnitude and of the magnitude."""
    last = len(step) - 1
    left = np.int32(2) * (np.int32(step[0]) + np.int32(step[1]))
    right = np.int32(2) * (np.int32(step[last]) + np.int32(step[last - 1]))
    smooth_left, smooth_right = smooth[: last - 1], smooth[2:]
    step_left, step_middle, step_right = step[: last - 1], step[1:last], step[2:]
    total_squares = np.int32(0)
    total = np.float32(0)
    for x in range(len(step_middle)):
        across = np.int32(np.int32(smooth_right[x]) - np.int32(smooth_left[x]))
        down = np.int32(
            np.int32(step_left[x]) + np.int32(2) * np.int32(step_middle[x]) + np.int32(step_right[x])
        )
        square = np.int32(np.int32(across * across) + np.int32(down * down))
        total_squares = np.int32(total_squares + square)
        total += np.sqrt(np.float32(square))
    squares[column] += total_squares + left * left + right * right
    magnitudes[column] += np.float64(total) + abs(left) + abs(right)
