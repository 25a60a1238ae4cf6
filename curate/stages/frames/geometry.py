"""Size and shape, from the displayed width and height alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from uhr.curate.frame import Frame
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column

LANDSCAPES = ((1, 1), (5, 4), (4, 3), (3, 2), (16, 10), (16, 9), (2, 1), (21, 9), (3, 1))
"""Common aspect ratios (width, height), ascending; portraits are their mirror images."""

GEOMETRY = (
    Column("megapixels", pa.float64(), "width x height / 10^6", "Mpx", "> 0", stage="geometry"),
    Column("aspect_ratio", pa.float64(), "width / height", "1", "> 0", stage="geometry"),
    Column(
        "aspect_bucket",
        pa.string(),
        "the nearest common aspect ratio, as a label (a training bucket in pixels is chosen in `encode`)",
        range="1:1, 16:9, 2:3, ...",
        stage="geometry",
    ),
)


class GeometryStage(FrameStage):
    """Megapixels, aspect ratio, and the label of the nearest common aspect ratio."""

    name = "geometry"
    hashed_name = "uhr.curate.stages.geometry:GeometryStage"
    reads = "header"
    adds = GEOMETRY

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        width, height = frame.header.width, frame.header.height
        return {
            "megapixels": width * height / 1e6,
            "aspect_ratio": width / height,
            "aspect_bucket": aspect_bucket(width, height),
        }


def aspect_bucket(width: int, height: int) -> str:
    """Return the common ratio nearest to width / height on a logarithmic scale, as a label such as `16:9`.

    Computed in integers. An image exactly between two ratios gets the one that is closer to 1:1; an image
    turned by 90 degrees has the mirrored label.
    """
    long, short = max(width, height), min(width, height)
    best = LANDSCAPES[0]
    for wider in LANDSCAPES[1:]:
        # nearer to `wider` when (long / short)^2 exceeds the product of the two ratios
        if long * long * best[1] * wider[1] <= short * short * best[0] * wider[0]:
            break
        best = wider
    return f"{best[0]}:{best[1]}" if width >= height else f"{best[1]}:{best[0]}"
