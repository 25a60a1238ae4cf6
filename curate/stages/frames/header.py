"""The header's columns: enough to reject small images without decoding them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from uhr.curate.frame import Frame
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column

HEADER = (
    Column(
        "format",
        pa.string(),
        "file format by its content, never by its name",
        range="JPEG, PNG, WEBP, ...",
        stage="header",
    ),
    Column("width", pa.int32(), "width as displayed (EXIF orientation applied)", "px", "> 0", stage="header"),
    Column(
        "height", pa.int32(), "height as displayed (EXIF orientation applied)", "px", "> 0", stage="header"
    ),
    Column(
        "orientation",
        pa.int8(),
        "EXIF orientation tag of the file; 1 is upright",
        range="1..8",
        stage="header",
    ),
    Column(
        "mode",
        pa.string(),
        "colour model of the file",
        range="L, LA, P, RGB, RGBA, CMYK, ...",
        stage="header",
    ),
    Column(
        "bit_depth",
        pa.int8(),
        "bits per channel, as the file stores them; null where its channels differ or its header does not "
        "say",
        "bit",
        "1..64",
        stage="header",
    ),
    Column("file_size", pa.int64(), "size of the file", "byte", ">= 0", stage="header"),
)


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
