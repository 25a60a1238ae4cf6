"""Bicubic enlargement of any part of an image, without the whole result in memory."""

from __future__ import annotations

import torch


def reflected(length: int, padded: int) -> torch.Tensor:
    """Return the positions [padded] on an axis of `length` that is padded by reflection, without repeating
    its last element (torch's mode "reflect", for any distance)."""
    if length == 1:
        return torch.zeros(padded, dtype=torch.long)
    period = 2 * (length - 1)
    place = torch.arange(padded) % period
    return torch.minimum(place, period - place)


def bicubic_at(
    image: torch.Tensor, size: tuple[int, int], rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Return some rows and columns of an image [B, C, h, w] enlarged to `size` (height, width): float32
    [B, C, len(rows), len(columns)].

    The values equal those of `filters.bicubic` on the whole image (kernel a = -0.75, pixels are areas,
    borders repeated, overshoots not clipped), up to rounding. Neither axis may shrink.
    """
    assert size[0] >= image.shape[-2], (tuple(image.shape), size)
    assert size[1] >= image.shape[-1], (tuple(image.shape), size)
    found = _along(image.float(), -2, size[0], rows)
    return _along(found, -1, size[1], columns)


def _along(x: torch.Tensor, axis: int, length: int, places: torch.Tensor) -> torch.Tensor:
    given = x.shape[axis]
    source = (places.double() + 0.5) * (given / length) - 0.5
    first = source.floor()
    offset = source - first
    shape = [1] * x.ndim
    shape[axis] = len(places)
    found: torch.Tensor | None = None
    for tap, weight in zip(range(-1, 3), _weights(offset), strict=True):
        index = (first.long() + tap).clamp(0, given - 1).to(x.device)
        part = x.index_select(axis, index) * weight.reshape(shape).to(x.device, x.dtype)
        found = part if found is None else found + part
    assert found is not None
    return found


def _weights(t: torch.Tensor, a: float = -0.75) -> list[torch.Tensor]:
    """Keys' cubic kernel at the four neighbours -1, 0, 1, 2 of a place at offset t in [0, 1)."""

    def near(d: torch.Tensor) -> torch.Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: torch.Tensor) -> torch.Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]
