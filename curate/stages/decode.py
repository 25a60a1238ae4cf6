"""The full decode: what proves that a file is a whole image, and names its content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uhr.curate.frame import Frame
from uhr.curate.stage import Stage
from uhr.manifests.schema import COLUMNS, DECODE


class DecodeStage(Stage):
    """Decodes the image, which fails the sample if the file is truncated or damaged, and adds the hash of
    its bytes and the notes of its decoder.
    """

    name = "decode"
    version = 2
    adds = (COLUMNS["content_hash"], *DECODE)

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        content_hash = frame.content_hash
        # later stages share the pixels; a fault fails the sample
        notes = frame.decoded.notes
        return {"content_hash": content_hash, "notes": "; ".join(notes) or None}
