"""A patch of an image as a frame of its own, for stages and rules of patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from uhr.curate.frame import Frame
from uhr.curate.stage import Box
from uhr.pixels.decode import jpeg_preview
from uhr.pixels.decoders import upright
from uhr.pixels.types import Header

if TYPE_CHECKING:
    import numpy as np
    import torch

    from uhr.models.scores.images import View


class PatchFrame(Frame):
    """The part of a decoded image inside of a box. It shares the pixels of `whole`, which is decoded once.

    `header` has the size of the patch and no orientation, since the box is in the upright image; `data`,
    `content_hash` and `file_size` are those of the whole file.
    """

    def __init__(self, whole: Frame, box: Box, row: Mapping[str, Any]) -> None:
        super().__init__(whole.uri, whole.blob, row, whole.limits)
        self.whole = whole
        self.box = box

    @cached_property
    def header(self) -> Header:
        _, _, width, height = self.box
        return replace(self.whole.header, raw_width=width, raw_height=height, orientation=1)

    @cached_property
    def file_size(self) -> int:
        return self.whole.file_size

    @cached_property
    def data(self) -> bytes:
        return self.whole.data

    @cached_property
    def content_hash(self) -> str:
        return self.whole.content_hash

    @property
    def is_decoded(self) -> bool:
        return True

    @cached_property
    def gray(self) -> np.ndarray:
        """uint8 [H, W], OpenCV's gray of the box, upright."""
        return self._cropped(upright(self.whole.gray, self.whole.header.orientation))

    @cached_property
    def rgb(self) -> np.ndarray:
        """uint8 [H, W, 3], upright sRGB, alpha over white."""
        return self._cropped(self.whole.rgb)

    def preview(self, long_side: int = 320) -> tuple[bytes, int, int]:
        return jpeg_preview(self.rgb, long_side)

    def view(self, view: View) -> torch.Tensor:
        return view.of(self.rgb)

    def check_unchanged(self) -> None:
        self.whole.check_unchanged()

    def _cropped(self, pixels: np.ndarray) -> np.ndarray:
        import numpy as np

        x, y, width, height = self.box
        return np.ascontiguousarray(pixels[y : y + height, x : x + width])
