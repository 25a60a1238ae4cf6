"""Whole activations stored as bands of rows, and GroupNorm statistics gathered band by band."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from uhr.models.vae.stream import Shape


class WholeInput:
    """The caller's whole tensor, [1, C, H, W], read in bands."""

    def __init__(self, whole: torch.Tensor) -> None:
        self.whole = whole

    def bands(
        self, rows: int, dtype: torch.dtype, consume: bool = False
    ) -> Iterator[tuple[torch.Tensor, bool]]:
        height = self.whole.shape[2]
        for top in range(0, height, rows):
            yield self.whole[:, :, top : top + rows].to(dtype), top + rows >= height


class StoredBands:
    """A stored activation as a list of bands of equal height. Each is freed once it was read for the last
    time, so that a segment's input shrinks while its output grows.

    `storage` is the device of the bands; None is the one that computes.
    """

    def __init__(self, shape: Shape, rows: int, storage: torch.device | None) -> None:
        self._shape, self._rows, self._storage = shape, rows, storage
        self._bands: list[torch.Tensor | None] = []
        self._written = 0
        self._device: torch.device | None = None

    def write(self, band: torch.Tensor) -> None:
        """Append any number of rows."""
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
        return torch.empty(size, dtype=band.dtype, device=self._storage or band.device)

    def bands(
        self, rows: int, dtype: torch.dtype, consume: bool = False
    ) -> Iterator[tuple[torch.Tensor, bool]]:
        """Yield the stored bands, at most `rows` high, on the computing device, each with whether it is
        last."""
        assert self._rows <= rows
        assert self._written == self._shape.height, f"{self._written} of {self._shape.height} rows"
        for i in range(len(self._bands)):
            # no variable for the band: this frame would keep it alive while the consumer works on it
            yield self._take(i, consume), i + 1 == len(self._bands)

    def _take(self, i: int, consume: bool) -> torch.Tensor:
        band = self._bands[i]
        assert band is not None, "these rows were consumed"
        if consume:
            self._bands[i] = None
        return band.to(self._device)


class Moments:
    """Mean and variance of each group of a GroupNorm, accumulated over bands.

    float32 inside a band, merged in float64 by the pairwise rule of Chan, Golub and LeVeque, which avoids the
    cancellation of a sum of squares.
    """

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
        """Return mean and (biased) variance, float64 [groups] each."""
        return self._mean, self._squares / self._count
