"""Where in a gray image there is texture and sharpness, and windows of the most detail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from uhr.curate.measures.gray_pass import FLAT_VARIANCE

TILE = 64
"""Side in px of the tiles that are measured; windows begin at multiples of it."""


class Window(NamedTuple):
    """A square of an image: its top left in px, the mean detail of its tiles, and the share of flat ones."""

    x: int
    y: int
    detail: float
    flat: float


def tiles(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure every complete tile of a gray image, uint8 [H, W].

    Returns:
        detail: float64 [rows, columns], log(1 + V) + log(1 + L): V is the variance of the Sobel gradient
        magnitude
            in a tile (texture), L that of the 3 x 3 Laplacian (sharpness).
        flat: bool [rows, columns], V below the variance of flat patches.
    """
    import cv2

    gray = np.ascontiguousarray(gray)
    across, down = (cv2.Sobel(gray, cv2.CV_32F, *axis, ksize=3) for axis in ((1, 0), (0, 1)))
    texture = _variance(cv2.magnitude(across, down))
    sharpness = _variance(cv2.Laplacian(gray, cv2.CV_32F))
    return np.log1p(texture) + np.log1p(sharpness), texture < FLAT_VARIANCE


def _variance(values: np.ndarray) -> np.ndarray:
    rows, columns = values.shape[0] // TILE, values.shape[1] // TILE
    cut = values[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE)
    mean = cut.mean((1, 3), dtype=np.float64)
    return np.maximum(np.square(cut).mean((1, 3), dtype=np.float64) - mean**2, 0.0)


def windows(gray: np.ndarray, size: int) -> list[Window]:
    """Return every window of `size` px, a multiple of TILE, that begins at a multiple of TILE; row by row."""
    detail, flat = tiles(gray)
    side = size // TILE
    if detail.shape[0] < side or detail.shape[1] < side:
        return []
    means, shares = _means(detail, side), _means(flat.astype(np.float64), side)
    return [
        Window(x * TILE, y * TILE, float(means[y, x]), float(shares[y, x]))
        for y in range(means.shape[0])
        for x in range(means.shape[1])
    ]


def _means(values: np.ndarray, side: int) -> np.ndarray:
    """Return the mean of every square of `side` values."""
    total = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    total[1:, 1:] = values.cumsum(0).cumsum(1)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return sums / side**2


def best_apart(found: list[Window], size: int, overlap: float) -> Iterator[Window]:
    """Yield windows by decreasing detail that share at most `overlap` of their area with each one before
    them.

    Of windows with equal detail the first from the top left comes first.
    """
    chosen: list[Window] = []
    for window in sorted(found, key=lambda w: (-round(w.detail, 9), w.y, w.x)):
        if all(_shared(window, other, size) <= overlap for other in chosen):
            chosen.append(window)
            yield window


def _shared(one: Window, two: Window, size: int) -> float:
    across = max(0, size - abs(one.x - two.x))
    down = max(0, size - abs(one.y - two.y))
    return across * down / size**2
