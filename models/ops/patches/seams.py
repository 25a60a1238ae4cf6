"""Measure how visible the borders of patches are in an image, by the gradients across them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from uhr.models.ops.patches.grid import Box

REFERENCE_DISTANCE = 2
"""Distance in px from a border, on both sides, of the gradients with which those across it are compared."""


def seam_strength(image: torch.Tensor, boxes: Sequence[Box]) -> float:
    """Return how visible the borders of `boxes` are in an image [B, C, H, W] of any dtype: the mean absolute
    difference across them, divided by that 2 px away on both sides. 1 is no seam.

    The result is 1 without inner borders or without any gradient, and infinity if the only gradients are on
    borders.
    """
    across, nearby = 0.0, 0.0
    for axis, edges in ((-2, _inner(boxes, "top", "bottom")), (-1, _inner(boxes, "left", "right"))):
        for edge in edges:
            around = [
                edge + shift
                for shift in (-REFERENCE_DISTANCE, REFERENCE_DISTANCE)
                if 0 < edge + shift < image.shape[axis]
            ]
            if 0 < edge < image.shape[axis] and around:
                across += _gradient(image, axis, edge)
                nearby += sum(_gradient(image, axis, place) for place in around) / len(around)
    if nearby == 0:
        return 1.0 if across == 0 else float("inf")
    return across / nearby


def seams_of(image: Any, boxes: Sequence[Box]) -> float | None:
    """Return `seam_strength` of a PIL image, or None if it does not consist of several boxes."""
    import numpy as np

    if len(boxes) < 2:
        return None
    return seam_strength(torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)[None], boxes)


def _gradient(image: torch.Tensor, axis: int, edge: int) -> float:
    """The mean absolute difference between the row (column) before `edge` and the one behind it."""
    before, behind = image.narrow(axis, edge - 1, 2).float().unbind(axis)
    return (behind - before).abs().mean().item()


def _inner(boxes: Sequence[Box], first: str, last: str) -> list[int]:
    """Positions where a box begins or ends, the outermost left out."""
    starts, ends = {getattr(box, first) for box in boxes}, {getattr(box, last) for box in boxes}
    return sorted((starts | ends) - {min(starts, default=0), max(ends, default=0)})
