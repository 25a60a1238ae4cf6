"""The full decode: what proves that a file is a whole picture, and names its content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uhr.curate.frame import Frame
from uhr.curate.stage import Stage
from uhr.manifests.schema import COLUMNS


class DecodeStage(Stage):
    """Decodes the picture and adds the hash of its bytes; a truncated or damaged file fails here."""

    name = "decode"
    adds = (COLUMNS["content_hash"],)

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        content_hash = frame.content_hash
        _ = frame.decoded  # later stages share it; a fault fails the sample
        return {"content_hash": content_hash}
