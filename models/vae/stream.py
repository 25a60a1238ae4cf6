"""A VAE's layers as streams of rows: each takes some rows of its input and returns the rows they complete.

An image passes through a list of layers from top to bottom in bands of full width. A convolution keeps the
last rows of a band for the next one, so nothing is computed twice, no edge is blended, and the memory of a
pass is that of one band, whatever the height. Only GroupNorm needs the whole image: its mean and variance
must be known before a pass starts (`Pass.statistics`), and are gathered in an earlier one.

Shapes: a band is [1, C, n, W], n >= 0 rows; a `Shape` is (C, H, W) of the whole image at that layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Shape(NamedTuple):
    channels: int
    height: int
    width: int

    def size(self, itemsize: int, rows: int | None = None) -> int:
        """Return the bytes of the whole image, or of `rows` rows of it."""
        return self.channels * self.width * (self.height if rows is None else rows) * itemsize


BandStep = Callable[[torch.Tensor, bool], torch.Tensor]
"""`step(band, last)` returns the rows that this band completes. `last` marks the bottom of the image."""


@dataclass
class Pass:
    """State that the layers share during one run through the image."""

    dtype: torch.dtype
    statistics: dict[nn.GroupNorm, tuple[torch.Tensor, torch.Tensor]]
    """Per norm: mean and variance of each group, float64 [groups] on the CPU."""
    queues: dict[int, deque[torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Conv:
    """A convolution with zero padding; `pads` are (top, bottom, left, right) rows and columns."""

    module: nn.Conv2d
    pads: tuple[int, int, int, int]

    @property
    def kernel(self) -> int:
        return int(self.module.kernel_size[0])

    @property
    def stride(self) -> int:
        return int(self.module.stride[0])

    def shape(self, input_shape: Shape) -> Shape:
        top, bottom, left, right = self.pads
        height = (input_shape.height + top + bottom - self.kernel) // self.stride + 1
        width = (input_shape.width + left + right - self.kernel) // self.stride + 1
        return Shape(self.module.out_channels, height, width)

    def flops(self, input_shape: Shape) -> int:
        out = self.shape(input_shape)
        return 2 * self.kernel**2 * input_shape.channels * out.channels * out.height * out.width

    def start(self, run: Pass) -> BandStep:
        top, bottom, _, _ = self.pads
        waiting: torch.Tensor | None = None

        def step(band: torch.Tensor, last: bool) -> torch.Tensor:
            nonlocal waiting
            if waiting is None:
                waiting = _zero_rows(band, top)
            parts = (waiting, band, _zero_rows(band, bottom if last else 0))
            some = [part for part in parts if part.shape[2]]
            rows = torch.cat(some, dim=2) if len(some) > 1 else (some or [band])[0]
            out = max(0, (rows.shape[2] - self.kernel) // self.stride + 1)
            # a copy: a view would keep the whole band alive
            waiting = rows[:, :, out * self.stride :].clone()
            return self._convolve(rows, out)

        return step

    def _convolve(self, rows: torch.Tensor, out: int) -> torch.Tensor:
        _, _, left, right = self.pads
        if out == 0:
            width = (rows.shape[3] + left + right - self.kernel) // self.stride + 1
            return rows.new_empty(1, self.module.out_channels, 0, width)
        rows = rows[:, :, : (out - 1) * self.stride + self.kernel]
        if left != right:
            rows, left = F.pad(rows, (left, right, 0, 0)), 0
        return _conv2d(self.module, rows, (0, left))


@dataclass(frozen=True)
class Norm:
    """GroupNorm with the whole image's statistics, and the activation after it."""

    module: nn.GroupNorm
    activation: nn.Module | None = None

    def shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def start(self, run: Pass) -> BandStep:
        mean, variance = run.statistics[self.module]
        scale, shift = affine(self.module, mean, variance)

        def step(band: torch.Tensor, last: bool) -> torch.Tensor:
            # float32 inside whatever the dtype, as in diffusers' own GroupNorm
            inner = torch.promote_types(band.dtype, torch.float32)
            column = [cast(part, band, inner).view(1, -1, 1, 1) for part in (shift, scale)]
            normal = torch.addcmul(column[0], band.to(inner), column[1])
            if isinstance(self.activation, nn.SiLU):
                normal = F.silu(normal, inplace=True)
            elif self.activation is not None:
                normal = self.activation(normal)
            return normal.to(band.dtype)

        return step


def affine(
    norm: nn.GroupNorm, mean: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift per channel, float64 [C]: normalised = value * scale + shift."""
    per_group = norm.num_channels // norm.num_groups
    rate = (variance + norm.eps).rsqrt().repeat_interleave(per_group)
    weight, bias = norm.weight.detach().cpu().double(), norm.bias.detach().cpu().double()
    scale = weight * rate
    return scale, bias - mean.repeat_interleave(per_group) * scale


@dataclass(frozen=True)
class Double:
    """Nearest-neighbour upsampling to twice as many rows and columns."""

    def shape(self, input_shape: Shape) -> Shape:
        return Shape(input_shape.channels, 2 * input_shape.height, 2 * input_shape.width)

    def start(self, run: Pass) -> BandStep:
        def step(band: torch.Tensor, last: bool) -> torch.Tensor:
            if band.shape[2] == 0:
                return band.new_empty(1, band.shape[1], 0, 2 * band.shape[3])
            return F.interpolate(band, scale_factor=2.0, mode="nearest")

        return step


@dataclass(frozen=True)
class Split:
    """The start of a residual branch, whose rows wait in a queue for the `Join` of the same tag."""

    tag: int

    def shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def start(self, run: Pass) -> BandStep:
        queue = run.queues[self.tag] = deque()

        def step(band: torch.Tensor, last: bool) -> torch.Tensor:
            if band.shape[2]:
                queue.append(band)
            return band

        return step


@dataclass(frozen=True)
class Join:
    """Add the branch of the same tag, through its 1 x 1 convolution if it has one, and divide."""

    tag: int
    shortcut: nn.Conv2d | None
    divisor: float

    def shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def start(self, run: Pass) -> BandStep:
        queue = run.queues[self.tag]

        def step(band: torch.Tensor, last: bool) -> torch.Tensor:
            done = 0
            while done < band.shape[2]:
                waiting = queue.popleft()
                rows = min(waiting.shape[2], band.shape[2] - done)
                band[:, :, done : done + rows] += self._branch(waiting[:, :, :rows])
                if rows < waiting.shape[2]:
                    queue.appendleft(waiting[:, :, rows:].clone())
                done += rows
            return band if self.divisor == 1 else band.div_(self.divisor)

        return step

    def _branch(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.shortcut is None else _conv2d(self.shortcut, rows, (0, 0))


def cast(part: torch.Tensor, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Move and cast a weight to the band's device and dtype, so that a float32 pass over a bfloat16 or
    offloaded VAE needs no second copy of the VAE."""
    return part.to(like.device, dtype or like.dtype)


def _conv2d(module: nn.Conv2d, rows: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    bias = None if module.bias is None else cast(module.bias, rows)
    return F.conv2d(rows, cast(module.weight, rows), bias, module.stride, padding)


def _zero_rows(band: torch.Tensor, rows: int) -> torch.Tensor:
    return band.new_zeros(1, band.shape[1], rows, band.shape[3])
