"""Native resolution: detects images that were enlarged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from uhr.curate.frame import Frame
from uhr.curate.measures.resolution import upscale_ratio
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column


class NativeResolutionStage(FrameStage):
    """Estimated linear enlargement from the spectrum of the most detailed tiles (`measures/resolution.py`).

    1.0 means that no enlargement was detected, which is also the case for smooth and noisy images.
    """

    name = "native_resolution"
    hashed_name = "uhr.curate.stages.native_resolution:NativeResolutionStage"
    adds = (
        Column(
            "upscale_ratio",
            pa.float64(),
            "estimated linear enlargement that the picture went through: 1 where detail reaches the pixel "
            "grid",
            "1",
            ">= 1",
            stage="native_resolution",
        ),
    )

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        return {"upscale_ratio": upscale_ratio(frame.gray)}
