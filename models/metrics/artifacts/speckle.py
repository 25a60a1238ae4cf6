"""Speckles: isolated dots of one to three pixels in a quiet surrounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from pydantic import Field

from uhr.base.config import Config
from uhr.models.metrics.artifacts.heat import CELL, blank, check_size
from uhr.models.metrics.base import About, Sample, ScoreColumn
from uhr.models.metrics.per_image import PerImage

INNER, OUTER = 5, 13
"""px: the surrounding of a pixel is a square of OUTER px without the one of INNER px in its middle."""

VISIBLE = 64
"""levels of 255: contrast of a dot that must be found for area to be quiet."""

TILE = 256
"""px of the squares of which the densest is reported."""

SMALLEST = 64

_STRIP = 512
"""Rows that are computed at once: memory does not grow with the image."""


LEAST_QUIET = 0.05
"""Share of an image that must be quiet for its density to be measured: in less, a single dot would be a high
density."""


class Dots(NamedTuple):
    """The middles (y, x) of the dots of an image in px, float64 [n, 2], and the share of quiet pixels."""

    middles: np.ndarray
    quiet: float


class SpeckleMetric(PerImage):
    """Dots per megapixel of quiet area.

    A dot differs from the mean around it by many standard deviations of that, in any of the three channels.
    Area is quiet where a dot of 64 levels would be that far from the mean: images differ in how much detail
    hides dots. Grain and even texture have no dots, however strong they are: a pixel of Gaussian noise
    exceeds 10 deviations once in 10^23. Stars, glints, snow and defective pixels of a camera are dots too.
    Dots so dense that several are within 6 px of each other are not found. An image of which less than
    `LEAST_QUIET` is quiet has no density: no dots were found because none could be.
    """

    about = About("isolated dots of one to three pixels in quiet areas", "Apache-2.0", "this project")

    smallest = SMALLEST

    class Options(Config):
        """deviations: from the mean around a pixel, in standard deviations. contrast: the same in levels of
        255, at least.
        """

        deviations: float = Field(10, ge=5)
        contrast: float = Field(16, ge=1)

    def __init__(self, options: Options) -> None:
        self._options = options
        name = f"speckle/{options.deviations:g}-deviations/{options.contrast:g}-levels/quiet-{LEAST_QUIET:g}"
        super().__init__(name, packages=("opencv-python-headless",))
        self.columns = (
            ScoreColumn("speckle_density", "lower", "isolated dots per megapixel of quiet area", ">= 0"),
            ScoreColumn(
                "speckle_densest", "lower", f"dots per megapixel in the worst square of {TILE} px", ">= 0"
            ),
            ScoreColumn("speckle_quiet", None, "share of quiet area", "[0, 1]"),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> SpeckleMetric:
        return cls(options)

    def values(self, sample: Sample) -> tuple[float | None, float | None, float]:
        check_size(sample.image, sample.index, self.name, SMALLEST)
        dots = self.find(sample.image)
        if dots.quiet < LEAST_QUIET:
            return None, None, dots.quiet
        height, width = sample.image.shape[:2]
        density = len(dots.middles) / (height * width * dots.quiet) * 1e6
        return density, densest(dots.middles, height, width) * 1e6, dots.quiet

    def find(self, image: np.ndarray) -> Dots:
        """Find the dots of an image, uint8 RGB [H, W, 3]."""
        import cv2

        found: list[np.ndarray] = [np.zeros((0, 2))]
        quiet = 0
        for top, strip, inside in _strips(image):
            marked, calm = self._marked(strip)
            quiet += int(calm[inside.start : inside.stop].sum())
            _, _, boxes, middles = cv2.connectedComponentsWithStats(marked.astype(np.uint8), connectivity=8)
            small = (boxes[1:, cv2.CC_STAT_WIDTH] <= INNER) & (boxes[1:, cv2.CC_STAT_HEIGHT] <= INNER)
            own = (middles[1:, 1] >= inside.start) & (middles[1:, 1] < inside.stop)
            chosen = middles[1:][small & own]
            found.append(chosen[:, ::-1] + [top, 0])
        return Dots(np.concatenate(found), quiet / (image.shape[0] * image.shape[1]))

    def _marked(self, strip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pixels of dots, and those of quiet area, both bool [H, W]."""
        marked, quiet = np.zeros(strip.shape[:2], bool), np.ones(strip.shape[:2], bool)
        for channel in range(3):
            contrast, deviation = against_surrounding(np.ascontiguousarray(strip[..., channel]))
            least = self._options.deviations * np.maximum(deviation, 1)
            marked |= (contrast >= self._options.contrast) & (contrast >= least)
            quiet &= least <= VISIBLE
        return marked & quiet, quiet

    def heat(self, image: np.ndarray, index: int = 0) -> np.ndarray:
        """Return the density of dots in squares of 80 px, 1 for four or more; float32 [H / 16, W / 16]."""
        import cv2

        check_size(image, index, self.name, SMALLEST)
        heat = blank(image)
        cells = (self.find(image).middles // CELL).astype(int)
        np.add.at(heat, (cells[:, 0], cells[:, 1]), 1)
        count = cv2.boxFilter(heat, -1, (5, 5), normalize=False, borderType=cv2.BORDER_CONSTANT)
        return np.minimum(count / 4, 1)


def densest(middles: np.ndarray, height: int, width: int) -> float:
    """Return the most dots per px in any of the squares of `TILE` px that an image is divided into; the last
    of each row and column have what is left over as well.
    """
    side = min(TILE, height, width)
    rows, columns = height // side, width // side
    where = np.minimum(middles // side, [rows - 1, columns - 1]).astype(int)
    counts = np.zeros((rows, columns))
    np.add.at(counts, (where[:, 0], where[:, 1]), 1)
    tall = np.diff([*(side * row for row in range(rows)), height])
    wide = np.diff([*(side * column for column in range(columns)), width])
    return float((counts / np.outer(tall, wide)).max())


def against_surrounding(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each pixel of a plane, uint8 [H, W], how far it is from the mean of its surrounding, and the
    standard deviation of that, both float32 [H, W] in levels. Images are mirrored at their edges.
    """
    import cv2

    values = plane.astype(np.float32) - 128
    count = OUTER**2 - INNER**2

    def sums(square: bool) -> np.ndarray:
        box = cv2.sqrBoxFilter if square else cv2.boxFilter
        outer, inner = (
            box(values, cv2.CV_32F, (n, n), normalize=False, borderType=cv2.BORDER_REFLECT_101)
            for n in (OUTER, INNER)
        )
        return (outer - inner) / count

    mean = sums(square=False)
    variance = sums(square=True) - mean * mean
    return np.abs(values - mean), np.sqrt(np.maximum(variance, 0))


def _strips(image: np.ndarray) -> Iterator[tuple[int, np.ndarray, range]]:
    """Yield strips with the rows around them that their pixels are compared with: the first row of each, its
    pixels, and which of its rows are its own.
    """
    height = len(image)
    beside = OUTER // 2 + INNER
    for start in range(0, height, _STRIP):
        stop = min(start + _STRIP, height)
        top = max(start - beside, 0)
        yield top, image[top : min(stop + beside, height)], range(start - top, stop - top)
