"""Repetition: parts of an image that occur again elsewhere, by local features that are shifted together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from uhr.base.config import Config
from uhr.models.metrics.artifacts.heat import CELL, blank, check_size, gray_of
from uhr.models.metrics.base import About, Sample, ScoreColumn
from uhr.models.metrics.per_image import PerImage

SMALLEST = 256
"""px of the shorter side: smaller images have too few features."""

NEAREST = 4
"""How many of the most similar features are looked at: more copies than this less one are a texture."""

SAME = 0.7
"""Ratio of the distance of a copy to that of the next feature, at most (Lowe 2004)."""

CLOSE = 0.2
"""Distance of two copies' descriptors, at most: those of parts that only resemble each other are farther."""

TURN, GROWTH = 20.0, math.log(1.35)
"""Degrees, and logarithm of the ratio of sizes, that two copies may differ in."""

TOLERANCE = 1 / 64
"""How much the shifts of one copy may differ, as a fraction of the longer side."""

FOUND = 10.0
"""The score from which a group of pairs counts for the area and is shown in heat maps."""

_BLOCK = 1000


@dataclass(frozen=True, eq=False)
class Copy:
    """A part of an image that occurs twice: its features (x, y) in px in both places, float32 [n, 2], and
    -log10 of how many groups of so many pairs are expected by chance.
    """

    first: np.ndarray
    second: np.ndarray
    score: float


class RepetitionMetric(PerImage):
    """Whether parts of an image occur twice, and how much of it.

    SIFT features of the image, reduced to `side` px, are paired with similar ones at a distance. Pairs that
    share a shift, to 1/64 of the side, form a group. The score is -log10 of the number of groups of this size
    that are expected if all shifts are equally likely (number of false alarms; Desolneux, Moisan and Morel
    2000). The area is the share of the image near features of groups with a score of at least 10.

    Flat areas have no features. A feature with more than three copies is left out, as in a facade. A copy may
    be brighter or darker, noisy, and a little rotated (20 degrees) or resized (a third). Mirrored copies, and
    objects of one kind that do not look alike, are not found. What rightly occurs twice, such as lettering, a
    pair of lamps or a pattern with two or three periods, is found too.
    """

    about = About("parts of the image that occur again elsewhere in it", "Apache-2.0", "this project")

    smallest = SMALLEST

    class Options(Config):
        """side: px of the longer side of the reduced image. features: at most; the strongest are taken.
        distance: of two copies, at least, as a fraction of the longer side.
        """

        side: int = Field(1024, ge=256)
        features: int = Field(4000, ge=100)
        distance: float = Field(0.1, gt=0, lt=1)

    def __init__(self, options: Options) -> None:
        self._options = options
        name = f"repetition/sift-{options.features}/{options.side}-px/{options.distance:g}"
        super().__init__(name, packages=("opencv-python-headless",))
        self.columns = (
            ScoreColumn(
                "repetition_score", "lower", "-log10 of the expected number of such copies by chance", ">= 0"
            ),
            ScoreColumn("repetition_area", "lower", "share of the image that occurs twice", "[0, 1]"),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> RepetitionMetric:
        return cls(options)

    def values(self, sample: Sample) -> tuple[float, float]:
        check_size(sample.image, sample.index, self.name, SMALLEST)
        copies = self.copies(sample.image)
        return max((copy.score for copy in copies), default=0.0), float(
            self._covered(sample.image, copies).mean()
        )

    def copies(self, image: np.ndarray) -> list[Copy]:
        """Return the copies in an image, uint8 RGB [H, W, 3], the one with the highest score first; the
        others have a score of at least `FOUND`.
        """
        where, descriptors, scale = features(image, self._options.side, self._options.features)
        side = max(image.shape[:2]) * scale
        found = pairs(where, descriptors, self._options.distance * side)
        area = image.shape[0] * image.shape[1] * scale * scale
        groups = grouped(where[found[:, 0], :2], where[found[:, 1], :2], TOLERANCE * side, area)
        return [Copy(copy.first / scale, copy.second / scale, copy.score) for copy in groups]

    def heat(self, image: np.ndarray, index: int = 0) -> np.ndarray:
        """Return 1 in the cells near features of copies, and 0 elsewhere, float32 [H / 16, W / 16]."""
        check_size(image, index, self.name, SMALLEST)
        return self._covered(image, self.copies(image))

    def _covered(self, image: np.ndarray, copies: list[Copy]) -> np.ndarray:
        import cv2

        heat = blank(image)
        radius = max(round(max(image.shape[:2]) * TOLERANCE / CELL), 1)
        for copy in copies:
            if copy.score >= FOUND:
                for x, y in np.concatenate([copy.first, copy.second]):
                    cv2.circle(heat, (int(x // CELL), int(y // CELL)), radius, 1.0, -1)
        return heat


def features(image: np.ndarray, side: int, most: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Find SIFT features in an image, reduced to `side` px if it is larger.

    Returns x, y, size and angle of each in the reduced image, float32 [n, 4]; its descriptor, float32
    [n, 128], a vector of length 1 (RootSIFT, Arandjelovic and Zisserman 2012); and the scale of the reduced
    image.
    """
    import cv2

    gray = gray_of(image)
    height, width = gray.shape
    scale = min(1.0, side / max(height, width))
    if scale < 1:
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    points, descriptors = cv2.SIFT.create(nfeatures=most).detectAndCompute(gray, None)
    if descriptors is None or not len(points):
        return np.zeros((0, 4), np.float32), np.zeros((0, 128), np.float32), scale
    where = np.array([(*point.pt, point.size, point.angle) for point in points], np.float32)
    descriptors = descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9)
    return where, np.sqrt(descriptors).astype(np.float32), scale


def pairs(where: np.ndarray, descriptors: np.ndarray, least: float) -> np.ndarray:
    """Return the pairs of features that are copies, as indices [n, 2]: of similar size and angle, at least
    `least` px from each other, and with descriptors that are more alike than with any other feature.
    """
    count = len(where)
    nearest = min(NEAREST, count - 1)
    found = [np.zeros((0, 2), int)]
    if nearest < 2:
        return found[0]
    for start in range(0, count, _BLOCK):
        block = slice(start, min(start + _BLOCK, count))
        distance = np.sqrt(np.maximum(2 - 2 * descriptors[block] @ descriptors.T, 0))
        apart = where[block, None, :2] - where[None, :, :2]
        distance[(apart**2).sum(axis=2) < least * least] = np.inf
        other = np.argpartition(distance, nearest - 1, axis=1)[:, :nearest]
        value = np.take_along_axis(distance, other, 1)
        order = np.argsort(value, axis=1, kind="stable")
        other, value = np.take_along_axis(other, order, 1), np.take_along_axis(value, order, 1)
        # the next feature may not be close as well: exact copies differ by rounding only, at any ratio
        gap = (value[:, :-1] < np.minimum(SAME * value[:, 1:], CLOSE)) & (value[:, 1:] > CLOSE)
        # those before the first gap are copies
        copies = np.where(gap.any(axis=1), gap.argmax(axis=1) + 1, 0)
        row, rank = np.nonzero(np.arange(nearest)[None] < copies[:, None])
        found.append(np.stack([start + row, other[row, rank]], axis=1))
    chosen = np.concatenate(found)
    one, two = where[chosen[:, 0]], where[chosen[:, 1]]
    turn = np.abs((two[:, 3] - one[:, 3] + 180) % 360 - 180)
    growth = np.abs(np.log(two[:, 2] / one[:, 2]))
    return chosen[(turn < TURN) & (growth < GROWTH)]


def grouped(one: np.ndarray, two: np.ndarray, tolerance: float, area: float) -> list[Copy]:
    """Group pairs by their shift, the least likely group first, each pair in one group.

    Args:
        one, two: places (x, y) of the features of each pair, float32 [n, 2].
        tolerance: how far the shifts of a group may be from that of its middle pair, in x and in y.
        area: of the image.
    """
    # the same pair from both sides is one, and so are several features of one place
    swap = (two[:, 0] < one[:, 0]) | ((two[:, 0] == one[:, 0]) & (two[:, 1] < one[:, 1]))
    one, two = np.where(swap[:, None], two, one), np.where(swap[:, None], one, two)
    cells = np.concatenate([one, two], axis=1) // max(tolerance / 2, 1)
    _, kept = np.unique(cells.astype(int), axis=0, return_index=True)
    one, two = one[np.sort(kept)], two[np.sort(kept)]
    shift = two - one
    count = len(shift)
    # shifts to the right: at most twice as dense as if they were uniform over the image
    chance = min(2 * (2 * tolerance) ** 2 / area, 0.5)
    left = np.ones(count, bool)
    groups: list[Copy] = []
    while left.any():
        members = (np.abs(shift[:, None] - shift[None]).max(axis=2) <= tolerance) & left & left[:, None]
        sizes = members.sum(axis=1)
        middle = int(sizes.argmax())
        score = -(math.log(count) + log_binomial_tail(count - 1, int(sizes[middle]) - 1, chance)) / math.log(
            10
        )
        if groups and score < FOUND:
            break
        chosen = members[middle]
        groups.append(Copy(one[chosen], two[chosen], max(0.0, score)))
        left &= ~chosen
    return groups


def log_binomial_tail(n: int, k: int, p: float) -> float:
    """Return an upper bound (Chernoff) of the natural logarithm of the probability of at least k of n."""
    if k <= n * p:
        return 0.0
    q = k / n
    rest = (1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0
    return -n * (q * math.log(q / p) + rest)
