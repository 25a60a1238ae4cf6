"""The header's columns: enough to reject small images without decoding them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uhr.curate.frame import Frame
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import HEADER


class HeaderStage(FrameStage):
    """Format, size, orientation and colour model as the header states them; only `decode` verifies the
    file.
    """

    name = "header"
    hashed_name = "uhr.curate.stages.header:HeaderStage"
    version = 2
    reads = "header"
    adds = HEADER

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        header = frame.header
        return {
            "format": header.format,
            "width": header.width,
            "height": header.height,
            "orientation": header.orientation,
            "mode": header.mode,
            "bit_depth": header.bit_depth,
            "file_size": frame.file_size,
        }
