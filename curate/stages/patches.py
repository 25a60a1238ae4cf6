"""Patches: squares of an image at its own resolution, which become rows of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal

import pyarrow as pa
from pydantic import Field

from uhr.curate.frame import Frame
from uhr.curate.measures.detail import TILE, Window, best_apart, windows
from uhr.curate.stage import Child, ExpandStage
from uhr.manifests.schema import Column


class PatchesStage(ExpandStage):
    """Cuts patches from a grid, or where texture and sharpness are largest; never where an image is mostly
    flat.

    The pixels of a patch are those of the image, not resized. An image smaller than a patch has none.
    """

    name = "patches"
    hashed_name = "uhr.curate.stages.patches:PatchesStage"
    adds = (
        Column(
            "patch_detail",
            pa.float64(),
            "mean over 64 px tiles of log(1 + V) + log(1 + L): V is the variance of the Sobel gradient "
            "magnitude, L that of the Laplacian",
            "1",
            ">= 0",
            stage="patches",
        ),
    )

    class Params(ExpandStage.Params):
        size: int = Field(1024, ge=TILE, multiple_of=TILE, description="side of a patch, px")
        place: Literal["detail", "grid"] = Field(
            "detail", description="where detail is largest, or the cells of a centred grid"
        )
        count: int | None = Field(4, ge=1, description="most patches of an image; null for all")
        overlap: float = Field(
            0.0, ge=0, lt=1, description="largest share of its area that a patch has in common with another"
        )
        flat: float = Field(0.5, ge=0, le=1, description="largest share of flat 64 px tiles")

    def expand(self, frame: Frame) -> Iterator[Child]:
        from uhr.pixels.decoders import upright

        size = self.params.size
        gray = upright(frame.gray, frame.header.orientation)
        found = self._grid(gray) if self.params.place == "grid" else windows(gray, size)
        textured = [window for window in found if window.flat <= self.params.flat]
        chosen = list(itertools.islice(best_apart(textured, size, self.params.overlap), self.params.count))
        for window in sorted(chosen, key=lambda w: (w.y, w.x)):
            yield Child((window.x, window.y, size, size), {"patch_detail": window.detail})

    def _grid(self, gray: object) -> list[Window]:
        """Return the cells of a grid in the middle of the image."""
        import numpy as np

        assert isinstance(gray, np.ndarray)
        size = self.params.size
        top, left = (gray.shape[0] % size) // 2, (gray.shape[1] % size) // 2
        cells = windows(gray[top:, left:], size)
        return [
            window._replace(x=window.x + left, y=window.y + top)
            for window in cells
            if window.x % size == window.y % size == 0
        ]
