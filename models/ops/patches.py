"""Overlapping patches of an image (or latent) of any size: where they lie, and how they blend."""

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
        """The box of x [..., H, W]: a view."""
        return x[..., self.top : self.bottom, self.left : self.right]

    def scaled(self, factor: int) -> Box:
        """The same box on a grid that is `factor` times as fine."""
        return Box(*(factor * side for side in (self.top, self.left, self.height, self.width)))


def starts(length: int, window: int, overlap: int, multiple: int = 1) -> list[int]:
    """Where windows start along one axis: the first at 0, the last ending at `length`, evenly spread, as few
    as overlap by at least `overlap` each. A window as long as the axis or longer starts once, at 0.

    All but the last are multiples of `multiple` (a packing grid, say), which must divide window - overlap;
    the last one is too if it divides length - window.
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
    """Boxes that cover [height, width], row by row, each at least `overlap` over the next.

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
    """Blending weights of a patch, float32 [box.height, box.width] in (0, 1]: a plateau of 1, and on each
    side inside the image a Gaussian ramp of the overlap's width. RealUHR says "alpha blending with Gaussian
    feathering" (figure 3); plateau and standard deviation, overlap / 3, are ours.

    A side on the image's border keeps weight 1: no neighbour would make up for it.
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
    """Patches put together by a weighted mean, in float32: `add` each, then `result`."""

    def __init__(
        self, batch: int, channels: int, height: int, width: int, device: torch.device | str = "cpu"
    ):
        import torch

        self._sum = torch.zeros(batch, channels, height, width, device=device)
        self._weights = torch.zeros(height, width, device=device)

    def add(self, box: Box, patch: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """`patch` is [B, C, h, w] at `box`, `weights` [h, w] (1 if none: MultiDiffusion's plain mean)."""
        import torch

        place, weights = self._sum.device, torch.ones(patch.shape[-2:]) if weights is None else weights
        weights = weights.to(place, torch.float32)
        box.crop(self._sum).add_(patch.to(place, torch.float32) * weights)
        box.crop(self._weights).add_(weights)

    def result(self) -> torch.Tensor:
        """[B, C, H, W]. Every place must be covered."""
        assert bool((self._weights > 0).all()), "the patches leave a gap"
        return self._sum / self._weights
