"""Overlapping patches of an image (or of latents) of any size: their positions, and how they are blended."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uhr.base.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Box:
    """A rectangle on an image's grid, in that grid's own units (pixels or latents)."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def right(self) -> int:
        return self.left + self.width

    def crop(self, x: torch.Tensor) -> torch.Tensor:
        """Return the part of x [..., H, W] in the box, as a view."""
        return x[..., self.top : self.bottom, self.left : self.right]

    def scaled(self, factor: int) -> Box:
        """Return the same box on a grid that is `factor` times as fine."""
        return Box(*(factor * side for side in (self.top, self.left, self.height, self.width)))


def starts(length: int, window: int, overlap: int, multiple: int = 1) -> list[int]:
    """Return where windows start along one axis: the first at 0, the last ending at `length`, evenly spread,
    and as few as possible with overlaps of at least `overlap`. A window that is not shorter than the axis
    starts once, at 0.

    All starts but the last are multiples of `multiple` (such as a packing grid), which must divide
    window - overlap; the last one is too if it divides length - window. Raises UserError if the overlap is
    not below the window, or the step not a multiple.
    """
    if not 0 <= overlap < window:
        raise UserError(f"patches of {window} cannot overlap by {overlap}", f"give 0 to {window - 1}")
    step = window - overlap
    if step % multiple:
        raise UserError(
            f"patches of {window} that overlap by {overlap} step by {step}",
            f"the step must be a multiple of {multiple}",
        )
    free = length - window
    if free <= 0:
        return [0]
    steps = -(-free // step)
    return [i * free // steps // multiple * multiple for i in range(steps)] + [free]


def grid(
    height: int, width: int, window: int | tuple[int, int], overlap: int, multiple: int = 1
) -> list[Box]:
    """Return boxes that cover [height, width], row by row, each overlapping the next by at least `overlap`.

    `window` is a side, or (height, width). Along an axis shorter than the window the box is as long as the
    axis. A 4096 grid with windows of 1024 has 49 boxes at overlap 512, 36 at 384 and 25 at 256.
    """
    tall, wide = (window, window) if isinstance(window, int) else window
    tops = starts(height, tall, overlap, multiple)
    lefts = starts(width, wide, overlap, multiple)
    return [
        Box(top, left, min(tall, height), min(wide, width)) for top, left in itertools.product(tops, lefts)
    ]


def feather(box: Box, height: int, width: int, overlap: int) -> torch.Tensor:
    """Return the blending weights of a patch, float32 [box.height, box.width] in (0, 1].

    They are 1 on a plateau, with a Gaussian ramp of the overlap's width on each side inside the image. A side
    on the image's border keeps weight 1, since it has no neighbour. RealUHR says "alpha blending with
    Gaussian feathering" (figure 3); the plateau and the standard deviation, overlap / 3, are ours.
    """
    rows = _ramps(box.height, overlap, box.top > 0, box.bottom < height)
    columns = _ramps(box.width, overlap, box.left > 0, box.right < width)
    return rows[:, None] * columns[None, :]


def _ramps(length: int, overlap: int, first: bool, last: bool) -> torch.Tensor:
    import torch

    weights = torch.ones(length)
    if overlap > 0:
        # distances from the plateau to pixel centres, outermost first
        distance = overlap - 0.5 - torch.arange(min(overlap, length), dtype=torch.float32)
        ramp = torch.exp(-(distance**2) / (2 * (overlap / 3) ** 2))
        if first:
            weights[: len(ramp)] *= ramp
        if last:
            weights[length - len(ramp) :] *= ramp.flip(0)
    return weights


class Canvas:
    """The weighted mean of patches, in float32: `add` each patch, then call `result`."""

    def __init__(
        self, batch: int, channels: int, height: int, width: int, device: torch.device | str = "cpu"
    ):
        import torch

        self._sum = torch.zeros(batch, channels, height, width, device=device)
        self._weights = torch.zeros(height, width, device=device)

    def add(self, box: Box, patch: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add a patch [B, C, h, w] at `box` with weights [h, w]; None is 1, MultiDiffusion's plain mean."""
        import torch

        place, weights = self._sum.device, torch.ones(patch.shape[-2:]) if weights is None else weights
        weights = weights.to(place, torch.float32)
        box.crop(self._sum).add_(patch.to(place, torch.float32) * weights)
        box.crop(self._weights).add_(weights)

    def result(self) -> torch.Tensor:
        """Return the mean [B, C, H, W]. Every position must be covered."""
        assert bool((self._weights > 0).all()), "the patches leave a gap"
        return self._sum / self._weights
