"""Assemble patches strip by strip: an image of any height in the memory of one row of patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from uhr.models.ops.latents import to_uint8
from uhr.models.ops.patches.grid import Box

OnStrip = Callable[[int, torch.Tensor], None]
"""`on_strip(top, rows)`: receives finished rows [B, C, h, W] from row `top` on, float32, on the CPU."""


class StripCanvas:
    """The weighted mean of patches, like `grid.Canvas`, emitted as soon as no later patch can change it.

    Boxes must be ordered by their top (as `grid.grid` returns them) and leave no gap; `finish` emits the
    rest. Sums and weights are on the CPU, in float32.

    batch, channels, width: the sizes B, C and W of the image.
    """

    def __init__(self, batch: int, channels: int, width: int, on_strip: OnStrip) -> None:
        self._sum = torch.zeros(batch, channels, 0, width)
        self._weights = torch.zeros(0, width)
        self._top = 0
        self._on_strip = on_strip

    def add(self, box: Box, patch: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a patch [B, C, h, w] at `box` with weights [h, w]."""
        assert box.top >= self._top, f"a patch at row {box.top} after one at {self._top}"
        self._emit(box.top - self._top)
        missing = box.bottom - self._top - self._weights.shape[0]
        if missing > 0:
            self._sum = torch.nn.functional.pad(self._sum, (0, 0, 0, missing))
            self._weights = torch.nn.functional.pad(self._weights, (0, 0, 0, missing))
        here = Box(box.top - self._top, box.left, box.height, box.width)
        weights = weights.to("cpu", torch.float32)
        here.crop(self._sum).add_(patch.to("cpu", torch.float32) * weights)
        here.crop(self._weights).add_(weights)

    def finish(self) -> None:
        """Emit all rows that are left."""
        self._emit(self._weights.shape[0])

    def _emit(self, rows: int) -> None:
        if rows == 0:
            return
        weights = self._weights[:rows]
        assert weights.shape[0] == rows, "the patches leave a gap"
        assert bool((weights > 0).all()), "the patches leave a gap"
        self._on_strip(self._top, self._sum[:, :, :rows] / weights)
        self._sum, self._weights = self._sum[:, :, rows:], self._weights[rows:]
        self._top += rows


class AssembledImage:
    """An image assembled from finished strips and cut to a size (height, width) in px.

    `values` are float32 [B, 3, H, W] in [-1, 1] if `exact`, else uint8 [B, H, W, 3], a quarter of the memory.
    """

    def __init__(self, batch: int, size: tuple[int, int], exact: bool) -> None:
        self._exact = exact
        shape = (batch, 3, *size) if exact else (batch, *size, 3)
        self.values = torch.empty(shape, dtype=torch.float32 if exact else torch.uint8)

    def write(self, top: int, rows: torch.Tensor) -> None:
        """Write the strip that begins at row `top`, without the part beyond the size."""
        height, width = self.values.shape[2:] if self._exact else self.values.shape[1:3]
        rows = rows[:, :, : max(0, height - top), :width]
        bottom = top + rows.shape[2]
        if self._exact:
            self.values[:, :, top:bottom] = rows
        else:
            self.values[:, top:bottom] = to_uint8(rows)

    def pil(self) -> list[Any]:
        """Return PIL images; needs uint8 values."""
        from PIL import Image

        assert not self._exact
        return [Image.fromarray(image) for image in self.values.numpy()]
