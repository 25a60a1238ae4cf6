"""The full decode: verifies that a file is a complete image, and hashes its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from uhr.curate.frame import Frame
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import COLUMNS, Column

NOTES = Column(
    "notes",
    pa.string(),
    "what the decoder found odd in an image that it decoded whole, separated by `; ` (an ICC profile "
    "that was ignored, stray bytes between segments); null where nothing was odd, or nothing was decoded",
    stage="decode",
)


class DecodeStage(FrameStage):
    """Decodes the image, and adds the hash of its bytes and the decoder's notes.

    A truncated or damaged file fails its sample.
    """

    name = "decode"
    hashed_name = "uhr.curate.stages.decode:DecodeStage"
    version = 2
    adds = (COLUMNS["content_hash"], NOTES)

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        content_hash = frame.content_hash
        # decodes the pixels, which later stages share
        notes = frame.decoded.notes
        return {"content_hash": content_hash, "notes": "; ".join(notes) or None}
