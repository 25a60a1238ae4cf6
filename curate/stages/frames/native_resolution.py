"""Native resolution: detects images that were enlarged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uhr.curate.frame import Frame
from uhr.curate.measures.resolution import upscale_ratio
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import COLUMNS


class NativeResolutionStage(FrameStage):
    """Estimated linear enlargement from the spectrum of the most detailed tiles (`measures/resolution.py`).

    1.0 means that no enlargement was detected, which is also the case for smooth and noisy images.
    """

    name = "native_resolution"
    hashed_name = "uhr.curate.stages.native_resolution:NativeResolutionStage"
    adds = (COLUMNS["upscale_ratio"],)

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        return {"upscale_ratio": upscale_ratio(frame.gray)}
