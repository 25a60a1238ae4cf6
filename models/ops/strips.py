"""Patches put together strip by strip: an image of any height in the memory of one row of patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from uhr.models.ops.latents import to_uint8
from uhr.models.ops.patches import Box

Strip = Callable[[int, torch.Tensor], None]
"""`strip(top, rows)`: float32 rows [B, C, h, W] of the finished image, from row `top` on, on the CPU."""


class StripCanvas:
    """A weighted mean of patches, as `patches.Canvas`, handed out as soon as no patch can touch it any more.

    Boxes must come ordered by their top (as `patches.grid` has them) and leave no gap; `finish` hands out
    the rest. Sums and weights lie on the CPU, in float32.
    """

    def __init__(self, batch: int, channels: int, width: int, strip: Strip) -> None:
        self._sum = torch.zeros(batch, channels, 0, width)
        self._weights = torch.zeros(0, width)
        self._top = 0
        self._strip = strip

    def add(self, box: Box, patch: torch.Tensor, weights: torch.Tensor) -> None:
        """`patch` is [B, C, h, w] at `box`, `weights` [h, w]."""
        assert box.top >= self._top, f"a patch at row {box.top} after one at {self._top}"
        self._hand_out(box.top - self._top)
        missing = box.bottom - self._top - self._weights.shape[0]
        if missing > 0:
            self._sum = torch.nn.functional.pad(self._sum, (0, 0, 0, missing))
            self._weights = torch.nn.functional.pad(self._weights, (0, 0, 0, missing))
        here = Box(box.top - self._top, box.left, box.height, box.width)
        weights = weights.to("cpu", torch.float32)
        here.crop(self._sum).add_(patch.to("cpu", torch.float32) * weights)
        here.crop(self._weights).add_(weights)

    def finish(self) -> None:
        """Hand out all rows that are left."""
        self._hand_out(self._weights.shape[0])

    def _hand_out(self, rows: int) -> None:
        if rows == 0:
            return
        weights = self._weights[:rows]
        assert weights.shape[0] == rows, "the patches leave a gap"
        assert bool((weights > 0).all()), "the patches leave a gap"
        self._strip(self._top, self._sum[:, :, :rows] / weights)
        self._sum, self._weights = self._sum[:, :, rows:], self._weights[rows:]
        self._top += rows


class Gathered:
    """Finished strips put together, cut to a size (height, width) in px.

    `values` are float32 [B, 3, H, W] in [-1, 1] if `exact`, else uint8 [B, H, W, 3], a quarter of the memory.
    """

    def __init__(self, batch: int, size: tuple[int, int], exact: bool) -> None:
        self._exact = exact
        shape = (batch, 3, *size) if exact else (batch, *size, 3)
        self.values = torch.empty(shape, dtype=torch.float32 if exact else torch.uint8)

    def write(self, top: int, rows: torch.Tensor) -> None:
        """The strip that begins at row `top`; what lies beyond the size is left out."""
        height, width = self.values.shape[2:] if self._exact else self.values.shape[1:3]
        rows = rows[:, :, : max(0, height - top), :width]
        bottom = top + rows.shape[2]
        if self._exact:
            self.values[:, :, top:bottom] = rows
        else:
            self.values[:, top:bottom] = to_uint8(rows)

    def pil(self) -> list[Any]:
        """PIL images, of uint8."""
        from PIL import Image

        assert not self._exact
        return [Image.fromarray(image) for image in self.values.numpy()]
