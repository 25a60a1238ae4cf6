"""How much the gradients across a line of an image exceed those across the lines near it, as a rank.

Along one axis, boundary x is between the pixels x - 1 and x. Only boundaries at multiples of a step are
considered: patches of latents begin there, and in an image that was a JPEG they are all borders of blocks, or
none is. A boundary is cut into segments of `SEGMENT` px. In each segment the difference across it is compared
with those across the nearest boundaries. Only the order counts: an edge, however strong, adds at most 1 in
each segment that it crosses, while a seam adds a little in all of them. If no boundary differs from the
others, every order is equally likely whatever the image shows. Then the mean score is 0, and sums of scores
have a known distribution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

SEGMENT = 64
"""px along a boundary over which differences are averaged before they are compared."""

REACH = 8
"""Boundaries on each side with which one is compared."""


Kind = Literal["gradients", "offsets"]
"""What is compared: the mean absolute difference across a segment of a boundary, or the absolute value of the
mean difference. The first finds lines and changes of texture, the second steps in brightness, which noise and
texture hide in single pixels."""

KINDS: tuple[Kind, ...] = ("gradients", "offsets")


def differences(gray: np.ndarray, kind: Kind) -> np.ndarray:
    """Return the difference across each boundary between columns in each segment, in gray levels.

    Args:
        gray: uint8 [H, W]; transposed for boundaries between rows.
        kind: what of it.

    Returns: float32 [segments, W]; column 0 is 0, as there is no pixel before it. Rows at the bottom that do
        not fill a segment are left out.
    """
    import cv2

    height, width = gray.shape
    found = np.zeros((height // SEGMENT, width), np.float32)
    for row in range(len(found)):
        strip = gray[row * SEGMENT : (row + 1) * SEGMENT]
        if kind == "gradients":
            step = cv2.absdiff(strip[:, 1:], strip[:, :-1])
            found[row, 1:] = cv2.reduce(step, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[0]
        else:
            found[row, 1:] = np.abs(np.diff(cv2.reduce(strip, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[0]))
    return found / SEGMENT


@dataclass(frozen=True, eq=False)
class Lines:
    """The boundaries of one axis at multiples of `step`, compared with each other.

    Attributes:
        step: px from one to the next.
        distances: in steps, of those that each is compared with, on both sides.
        scores: float32 [segments, n], in [-1, 1]: 1 where a boundary's difference is larger than all that it
            is compared with. Boundary 0 does not exist: its scores are 0.
        excess: float32 [segments, n]: the difference minus the mean of those, in gray levels.
    """

    step: int
    distances: tuple[int, ...]
    scores: np.ndarray
    excess: np.ndarray

    @classmethod
    def of(cls, found: np.ndarray, step: int, period: int | None = None) -> Lines:
        """Compare the boundaries of `differences` at multiples of `step`. With a `period`, a multiple of the
        step, those at multiples of it are not compared with each other.
        """
        values = found[:, ::step]
        count = values.shape[1]
        skip = None if period is None else period // step
        allowed = [d for d in range(1, 2 * REACH + 1) if skip is None or d % skip]
        distances = tuple(d for d in allowed[:REACH] if d < count - 1)
        scores, nearby = np.zeros_like(values), np.zeros_like(values)
        compared = np.zeros(count, np.float32)
        for distance in distances:
            left, right = slice(1, count - distance), slice(1 + distance, count)
            sign = np.sign(values[:, left] - values[:, right])
            scores[:, left] += sign
            scores[:, right] -= sign
            nearby[:, left] += values[:, right]
            nearby[:, right] += values[:, left]
            compared[left] += 1
            compared[right] += 1
        compared = np.maximum(compared, 1)
        scores /= compared
        return cls(step, distances, scores, values - nearby / compared)

    @property
    def count(self) -> int:
        return self.scores.shape[1]

    @functools.cached_property
    def means(self) -> np.ndarray:
        """The mean score of each boundary over its segments, float64 [n]."""
        return self.scores.mean(axis=0, dtype=np.float64)

    def z(self, positions: Sequence[int] | np.ndarray) -> float:
        """Return the standard score of the sum over some boundaries, given as multiples of the step: normal
        with mean 0 and deviation 1 if they do not differ from the others.
        """
        chosen = np.asarray(positions)
        return float(self._z(self.means[chosen].sum(), len(chosen), self._variance(chosen)))

    def combs(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the standard score and the number of the lines at every `period` steps, for each first line
        from 0 to period - 1. A comb that begins at 0 has its first line one period later.
        """
        rows = -(-self.count // period)
        means, exists = np.zeros(rows * period), np.zeros(rows * period)
        means[: self.count], exists[1 : self.count] = self.means, 1
        lines = exists.reshape(rows, period).sum(axis=0)
        # nearly the same for each comb: only lines next to the ends are compared with fewer
        middle = np.arange(period // 2 or period, self.count, period)
        variance = self._variance(middle) / max(len(middle), 1)
        total = means.reshape(rows, period).sum(axis=0)
        return self._z(total, np.maximum(lines, 1), np.maximum(lines, 1) * variance), lines.astype(int)

    def _z(self, total: Any, chosen: Any, variance: Any) -> Any:
        """The standard score of a sum over `chosen` boundaries with this variance in units of one boundary's.

        That is estimated inside the two groups, the chosen boundaries and the others, so that a strong grid
        does not add to it; a t statistic is converted to a standard score (Wallace 1959).
        """
        others = self.count - 1 - chosen
        means = self.means[1:]
        between = total**2 / chosen + (means.sum() - total) ** 2 / np.maximum(others, 1)
        free = max(self.count - 3, 1)
        inside = np.maximum((means**2).sum() - between, 0) / free
        # a score is one variable minus the mean of those that it is compared with
        compared = 2 * len(self.distances)
        # equally likely orders in independent segments have variance 1/3: real images have more
        one = np.maximum(inside * compared / (compared + 1), 1 / (3 * max(len(self.scores), 1)))
        t = total / np.sqrt(one * variance)
        return np.sign(t) * np.sqrt(free * np.log1p(t * t / free)) * (8 * free + 1) / (8 * free + 3)

    def _variance(self, chosen: np.ndarray) -> float:
        """The variance of the sum in units of one boundary's, to first order (Hoeffding's projection of the
        signs): boundaries that are near each other are compared with the same ones, or with each other.
        """
        weights = np.zeros(self.count)
        weights[chosen] = 1
        beside = np.zeros(self.count)
        compared = np.zeros(self.count)
        for d in self.distances:
            compared[1 : self.count - d] += 1
            compared[1 + d :] += 1
        share = np.divide(weights, compared, out=np.zeros_like(weights), where=compared > 0)
        for d in self.distances:
            beside[1 : self.count - d] += share[1 + d :]
            beside[1 + d :] += share[1 : self.count - d]
        return max(float(((weights - beside) ** 2).sum()), 1e-9)


def log_tail(z: float) -> float:
    """Return the natural logarithm of the probability that a standard normal variable exceeds z."""
    if z < 20:
        return math.log(0.5 * math.erfc(z / math.sqrt(2)))
    # erfc underflows; the first terms of its expansion are exact to 1e-5 here
    return -z * z / 2 - math.log(z * math.sqrt(2 * math.pi)) + math.log1p(-1 / (z * z))


def score_of(log_p: float) -> float:
    """Return the standard score, at least 0, that is exceeded with a probability, given as its natural
    logarithm.
    """
    if log_p >= math.log(0.5):
        return 0.0
    low, high = 0.0, 10.0
    while log_tail(high) > log_p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if log_tail(middle) > log_p else (low, middle)
    return low
