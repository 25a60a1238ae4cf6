"""Grids of patches, windows and tiles, by the gradients across their lines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models.metrics.artifacts.heat import CELL, blank, check_size, gray_of
from uhr.models.metrics.artifacts.lines import KINDS, SEGMENT, Lines, differences, log_tail, score_of
from uhr.models.metrics.base import About, Sample, ScoreColumn
from uhr.models.metrics.per_image import PerImage

if TYPE_CHECKING:
    import numpy as np

SMALLEST = 256
"""px of the shorter side: below, there are too few segments and lines."""

FEWEST = 3
"""How often a period must fit into an axis to be looked for there."""

FOUND = 4.0
"""The standard score from which a heat map shows lines."""


@dataclass(frozen=True, eq=False)
class Comb:
    """The strongest lines of one axis at one period, in px. `places` is how many first lines were tried."""

    lines: Lines
    period: int
    phase: int
    z: float
    places: int

    @property
    def indices(self) -> range:
        """Its lines in steps of `lines`; boundary 0 does not exist."""
        step = self.lines.step
        return range((self.phase or self.period) // step, self.lines.count, self.period // step)

    @property
    def step(self) -> float:
        """Mean excess of the gradients on its lines, in gray levels."""
        return float(self.lines.excess[:, list(self.indices)].mean())


@dataclass(frozen=True, eq=False)
class FoundGrid:
    """The strongest grid of an image: its period in px, its standard score, corrected for everything that was
    tried, and its lines in x and in y; None on an axis that it was not found on.
    """

    period: int
    z: float
    combs: tuple[Comb | None, Comb | None]

    @property
    def step(self) -> float:
        """Mean excess of the gradients on its lines, in gray levels."""
        found = [comb.step for comb in self.combs if comb is not None]
        return sum(found) / len(found)

    @property
    def phases(self) -> tuple[int | None, int | None]:
        """The first line in x and in y, in px."""
        x, y = (None if comb is None else comb.phase for comb in self.combs)
        return x, y


class GridMetric(PerImage):
    """Whether gradients are larger on lines at the period of patches, windows or tiles than between them.

    `grid_z` is a standard score: without a grid it exceeds t at most as often as a standard normal variable,
    however many periods, places and directions were tried (Bonferroni). `grid_step` says how strong the grid
    is, also where it is only noise.
    """

    about = About(
        "lines at one distance from each other, across which gradients are larger than beside them",
        "Apache-2.0",
        "this project",
    )

    smallest = SMALLEST

    class Options(Config):
        """periods: px, multiples of `multiple`; without any, all that fit at least three times are tried.
        multiple: lines are looked for only at multiples of it: 16 px is the grid of FLUX's tokens, 8 that of
        its VAE. 1 is anywhere, for images that were cropped or resized; it also finds the blocks of a JPEG.
        """

        periods: tuple[int, ...] = ()
        multiple: int = Field(16, ge=1)

    def __init__(self, options: Options) -> None:
        self._options = options
        for period in options.periods:
            if period < 2 or period % options.multiple:
                what = f"periods: {period} is not a multiple of {options.multiple} px"
                raise UserError(what, "give multiples of it, or set multiple")
        tried = "-".join(map(str, options.periods)) or "any"
        super().__init__(
            f"grid/{tried}/multiples-of-{options.multiple}", packages=("opencv-python-headless",)
        )
        what = "the strongest grid of lines"
        self.columns = (
            ScoreColumn(
                "grid_z", "lower", f"standard score of {what}, corrected for all that were tried", ">= 0"
            ),
            ScoreColumn(
                "grid_step", "lower", f"mean excess of gradients on {what}, in gray levels", "[-255, 255]"
            ),
            ScoreColumn("grid_period", None, f"period of {what}, in px", ">= 2"),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> GridMetric:
        return cls(options)

    def values(self, sample: Sample) -> tuple[float, float, float]:
        found = self.find(sample.image, sample.index)
        return found.z, found.step, found.period

    def find(self, image: np.ndarray, index: int = 0) -> FoundGrid:
        """Return the strongest grid of an image, uint8 RGB [H, W, 3].

        Raises UserError if the image is too small, or no period fits often enough.
        """
        check_size(image, index, self.name, SMALLEST)
        gray = gray_of(image)
        multiple = self._options.multiple
        longest = max(gray.shape) // FEWEST
        periods = self._options.periods or range(max(multiple, 2), longest + 1, multiple)
        best: FoundGrid | None = None
        least = math.inf
        for kind in KINDS:
            axes = [
                Periods(differences(each, kind), multiple, bool(self._options.periods))
                for each in (gray, gray.T)
            ]
            for period in periods:
                for used, log_p in hypotheses([axis.strongest(period) for axis in axes]):
                    if log_p < least:
                        least = log_p
                        best = FoundGrid(period, 0.0, used)
        if best is None:
            height, width = gray.shape
            what = f"no period of {self.name} fits {FEWEST} times into image {index} ({width}x{height} px)"
            raise UserError(what, "give smaller periods or larger images")
        tests = len(KINDS) * HYPOTHESES * len(periods)
        return FoundGrid(best.period, score_of(least + math.log(tests)), best.combs)

    def heat(self, image: np.ndarray, index: int = 0) -> np.ndarray:
        """Return how clearly each part of a line shows, in [0, 1], float32 [H / 16, W / 16]; 0 everywhere if
        there is no grid (`FOUND`).
        """
        found = self.find(image, index)
        heat = blank(image)
        if found.z >= FOUND:
            x, y = found.combs
            for comb, target in ((x, heat), (y, heat.T)):
                if comb is not None:
                    draw(target, comb.lines, comb.indices)
        return heat


class Periods:
    """One axis: the strongest lines at each period. Lines are compared with their neighbours at multiples of
    `multiple`, or, if the periods are given, only with those that are not of the same grid.
    """

    def __init__(self, found: np.ndarray, multiple: int, apart: bool) -> None:
        self._found, self._multiple, self._apart = found, multiple, apart
        self._shared = Lines.of(found, multiple)

    def strongest(self, period: int) -> Comb | None:
        """None if the period fits less than `FEWEST` times."""
        multiple = self._multiple
        if self._found.shape[1] < FEWEST * period:
            return None
        if period == multiple:
            # between two lines there is no other multiple
            step = period // 2 if period % 2 == 0 else 1
            lines = Lines.of(self._found, step, period)
        elif self._apart or period <= 2 * multiple:
            lines = Lines.of(self._found, multiple, period)
        else:
            lines = self._shared
        z, count = lines.combs(period // lines.step)
        allowed = [i for i in range(0, len(z), multiple // lines.step) if count[i] >= FEWEST - 1]
        index = max(allowed, key=lambda i: z[i])
        return Comb(lines, period, index * lines.step, float(z[index]), len(allowed))


HYPOTHESES = 3
"""Lines in x, in y, in both."""


def hypotheses(
    combs: Sequence[Comb | None],
) -> Iterator[tuple[tuple[Comb | None, Comb | None], float]]:
    """Yield the lines in x, in y and in both, each with the logarithm of the probability of lines as strong
    at any of the places that were tried.
    """
    x, y = combs
    if x is not None:
        yield (x, None), log_tail(x.z) + math.log(x.places)
    if y is not None:
        yield (None, y), log_tail(y.z) + math.log(y.places)
    if x is not None and y is not None:
        yield (x, y), log_tail((x.z + y.z) / math.sqrt(2)) + math.log(x.places * y.places)


def draw(heat: np.ndarray, lines: Lines, indices: Sequence[int]) -> None:
    """Draw lines between columns into a heat map."""
    import numpy as np

    cells = SEGMENT // CELL
    for index in indices:
        values = np.repeat(np.clip(lines.scores[:, index], 0, 1), cells)[: len(heat)]
        column = min(index * lines.step // CELL, heat.shape[1] - 1)
        heat[: len(values), column] = np.maximum(heat[: len(values), column], values)
