"""Seams at the borders of patches and tiles whose places are known, by the gradients across them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models.metrics.artifacts.grid import FOUND, SMALLEST, draw
from uhr.models.metrics.artifacts.heat import blank, check_size, gray_of
from uhr.models.metrics.artifacts.lines import KINDS, Lines, differences, log_tail, score_of
from uhr.models.metrics.base import About, Sample, ScoreColumn
from uhr.models.metrics.per_image import PerImage
from uhr.models.ops.patches.grid import starts

if TYPE_CHECKING:
    import numpy as np


class Axis(NamedTuple):
    """The lines of one axis, with the borders among them in steps; `vertical` if they are between columns."""

    lines: Lines
    borders: list[int]
    vertical: bool


class Borders:
    """The standard scores of the borders of both axes, together and each alone, by one kind of difference."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.axes = axes
        self.count = sum(len(axis.borders) for axis in axes)
        total = sum(axis.lines.z(axis.borders) * math.sqrt(len(axis.borders)) for axis in axes)
        self.z = total / math.sqrt(self.count)
        self.single = [axis.lines.z([border]) for axis in axes for border in axis.borders]
        means = [float(axis.lines.excess[:, axis.borders].mean()) for axis in axes]
        self.step = sum(m * len(axis.borders) for m, axis in zip(means, axes, strict=True)) / self.count


class SeamMetric(PerImage):
    """Whether gradients are larger on the borders of patches or tiles than beside them.

    `seam_z` is of all borders together, and has the distribution of `grid_z`. `seam_worst_z` is of the
    strongest one, corrected for their number: an edge of the image's content that happens to be on a border
    along all of its length is a seam to it.
    """

    about = About(
        "gradients across the borders of patches or tiles, against those beside them",
        "Apache-2.0",
        "this project",
    )

    smallest = SMALLEST

    class Options(Config):
        """patch, overlap: px, as of the samplers; the borders of all patches follow from the image's size.
        x, y: the borders instead, px from the left and from the top. multiple: all of them are multiples of
        it.
        """

        patch: int | None = Field(None, ge=16)
        overlap: int = Field(0, ge=0)
        x: tuple[int, ...] = ()
        y: tuple[int, ...] = ()
        multiple: int = Field(16, ge=1)

    def __init__(self, options: Options) -> None:
        if (options.patch is None) == (not options.x and not options.y):
            raise UserError(
                "the metric 'seams' does not know the borders", "give patch and overlap, or x and y"
            )
        self._options = options
        x, y = ("-".join(map(str, each)) or "none" for each in (options.x, options.y))
        places = (
            f"x-{x}-y-{y}" if options.patch is None else f"patch-{options.patch}-overlap-{options.overlap}"
        )
        name = f"seams/{places}/multiples-of-{options.multiple}"
        super().__init__(name, packages=("opencv-python-headless",))
        self.columns = (
            ScoreColumn("seam_z", "lower", "standard score of all borders of patches together", ">= 0"),
            ScoreColumn("seam_worst_z", "lower", "standard score of the strongest border, corrected", ">= 0"),
            ScoreColumn(
                "seam_step", "lower", "mean excess of gradients on the borders, in gray levels", "[-255, 255]"
            ),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> SeamMetric:
        return cls(options)

    def values(self, sample: Sample) -> tuple[float, float, float]:
        kinds = [Borders(axes) for axes in self.axes(sample.image, sample.index)]
        strongest = max(kinds, key=lambda each: each.z)
        worst = max(z for each in kinds for z in each.single)
        return (
            score_of(log_tail(strongest.z) + math.log(len(kinds))),
            score_of(log_tail(worst) + math.log(len(kinds) * strongest.count)),
            strongest.step,
        )

    def heat(self, image: np.ndarray, index: int = 0) -> np.ndarray:
        """Return how clearly each part of a border shows, in [0, 1], float32 [H / 16, W / 16]: of all borders
        if they show together, else of those that do alone (`FOUND`).
        """
        heat = blank(image)
        kinds = [Borders(axes) for axes in self.axes(image, index)]
        strongest = max(kinds, key=lambda each: each.z)
        together = score_of(log_tail(strongest.z) + math.log(len(kinds))) >= FOUND
        for lines, borders, vertical in strongest.axes:
            tests = math.log(len(kinds) * strongest.count)
            shown = [b for b in borders if together or score_of(log_tail(lines.z([b])) + tests) >= FOUND]
            draw(heat if vertical else heat.T, lines, shown)
        return heat

    def axes(self, image: np.ndarray, index: int = 0) -> list[list[Axis]]:
        """Return for each kind of difference the axes that have borders.

        Raises UserError if there are none in the image.
        """
        check_size(image, index, self.name, SMALLEST)
        gray = gray_of(image)
        height, width = gray.shape
        options = self._options
        chosen = (self.borders(width, options.x, index), self.borders(height, options.y, index))
        if not any(chosen):
            what = f"{self.name} has no border in image {index} ({width}x{height} px)"
            raise UserError(what, "give smaller patches or larger images")
        return [
            [
                Axis(Lines.of(differences(each, kind), options.multiple), borders, vertical)
                for each, borders, vertical in ((gray, chosen[0], True), (gray.T, chosen[1], False))
                if borders
            ]
            for kind in KINDS
        ]

    def borders(self, length: int, given: Sequence[int], index: int) -> list[int]:
        """Return the borders inside an axis in steps of `multiple`. Raises UserError for one between."""
        options = self._options
        if options.patch is not None:
            first = starts(length, options.patch, options.overlap)
            given = sorted({*first, *(start + options.patch for start in first)})
        inside = [border for border in given if 0 < border < length]
        between = [border for border in inside if border % options.multiple]
        if between:
            place = f"{between[0]} px of image {index}"
            what = f"{self.name}: the border at {place} is not a multiple of {options.multiple} px"
            raise UserError(what, "set multiple to a smaller number")
        return [border // options.multiple for border in inside]
