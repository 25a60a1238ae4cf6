"""Whether it shows that an image was put together from patches: gradients across their borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from uhr.models.ops.patches import Box

BESIDE = 2
"""How many px from a border, on either side, the gradients lie that those across it are held against."""


def seam_strength(image: torch.Tensor, boxes: Sequence[Box]) -> float:
    """How much the borders of `boxes` show in an image [B, C, H, W], of any dtype: the mean absolute
    difference across them, over that two px further in on either side. 1 is no seam.

    An image with no border inside, or without any gradient, gives 1; one whose only gradients lie on
    borders, infinity. Only the borders' own surroundings are read.
    """
    across, beside = 0.0, 0.0
    for axis, edges in ((-2, _inner(boxes, "top", "bottom")), (-1, _inner(boxes, "left", "right"))):
        for edge in edges:
            around = [edge + shift for shift in (-BESIDE, BESIDE) if 0 < edge + shift < image.shape[axis]]
            if 0 < edge < image.shape[axis] and around:
                across += _gradient(image, axis, edge)
                beside += sum(_gradient(image, axis, place) for place in around) / len(around)
    if beside == 0:
        return 1.0 if across == 0 else float("inf")
    return across / beside


def seams_of(image: Any, boxes: Sequence[Box]) -> float | None:
    """`seam_strength` of a PIL image; None where it was not put together from several boxes."""
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
