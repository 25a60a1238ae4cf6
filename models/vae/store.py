"""Whole activations in bands of rows, and the statistics of a GroupNorm gathered band by band."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from uhr.models.vae.stream import Shape


class Given:
    """A whole tensor that the caller holds, [1, C, H, W], read in bands."""

    def __init__(self, whole: torch.Tensor) -> None:
        self.whole = whole

    def bands(
        self, rows: int, dtype: torch.dtype, consume: bool = False
    ) -> Iterator[tuple[torch.Tensor, bool]]:
        height = self.whole.shape[2]
        for top in range(0, height, rows):
            yield self.whole[:, :, top : top + rows].to(dtype), top + rows >= height


class Rows:
    """A whole activation that is ours, as a list of bands of equal height: each goes as soon as it was read
    for the last time, so that a layer's input shrinks while its output grows.

    `hold` is where the bands lie: the device that computes, or the CPU beside a GPU.
    """

    def __init__(self, shape: Shape, rows: int, hold: torch.device | None) -> None:
        self._shape, self._rows, self._hold = shape, rows, hold
        self._bands: list[torch.Tensor | None] = []
        self._written = 0
        self._device: torch.device | None = None

    def write(self, band: torch.Tensor) -> None:
        """Append rows; their number is free."""
        self._device = band.device
        done = 0
        while done < band.shape[2]:
            at = self._written % self._rows
            if at == 0:
                self._bands.append(self._new(band))
            here = self._bands[-1]
            assert here is not None
            rows = min(here.shape[2] - at, band.shape[2] - done)
            here[:, :, at : at + rows] = band[:, :, done : done + rows]
            self._written += rows
            done += rows

    def _new(self, band: torch.Tensor) -> torch.Tensor:
        rows = min(self._rows, self._shape.height - self._written)
        assert rows > 0, f"more than {self._shape.height} rows"
        size = (1, self._shape.channels, rows, self._shape.width)
        return torch.empty(size, dtype=band.dtype, device=self._hold or band.device)

    def bands(
        self, rows: int, dtype: torch.dtype, consume: bool = False
    ) -> Iterator[tuple[torch.Tensor, bool]]:
        """The bands as they were cut at the writing, at most `rows` high, on the computing device."""
        assert self._rows <= rows
        assert self._written == self._shape.height, f"{self._written} of {self._shape.height} rows"
        for i in range(len(self._bands)):
            # no name for the band here: this frame would keep it alive while it is worked on
            yield self._take(i, consume), i + 1 == len(self._bands)

    def _take(self, i: int, consume: bool) -> torch.Tensor:
        band = self._bands[i]
        assert band is not None, "these rows were consumed"
        if consume:
            self._bands[i] = None
        return band.to(self._device)


class Moments:
    """Mean and variance of each group of a GroupNorm, over bands: float32 inside a band, merged in float64 by
    the pairwise rule of Chan, Golub and LeVeque, which does not cancel as a sum of squares would."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        self._groups = norm.num_groups
        self._count = 0
        self._mean = torch.zeros(self._groups, dtype=torch.float64)
        self._squares = torch.zeros(self._groups, dtype=torch.float64)

    def write(self, band: torch.Tensor) -> None:
        channels, rows, width = band.shape[1:]
        if rows == 0:
            return
        count = channels // self._groups * rows * width
        mean, variance = self._of_band(band.to(torch.promote_types(band.dtype, torch.float32)))
        delta, total = mean - self._mean, self._count + count
        self._mean += delta * (count / total)
        self._squares += variance * count + delta**2 * (self._count * count / total)
        self._count = total

    def _of_band(self, band: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # GroupNorm's own kernel without epsilon: four times as fast on a CPU as torch.var_mean
        channels, rows, width = band.shape[1:]
        _, mean, rate = torch.native_group_norm(
            band.contiguous(), None, None, 1, channels, rows * width, self._groups, 0.0
        )
        return mean.flatten().cpu().double(), rate.flatten().cpu().double().pow(-2)

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and (biased) variance, float64 [groups]."""
        return self._mean, self._squares / self._count
