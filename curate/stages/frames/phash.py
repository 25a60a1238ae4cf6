"""A perceptual hash: images that look alike have hashes that differ in few bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from uhr.curate.frame import Frame
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column

PHASH = Column(
    "phash",
    pa.string(),
    "perceptual hash, 16 hex digits: which of the 64 lowest cosine coefficients of the image at 32 x 32 px "
    "are above their median",
    source="imagehash 4.3, phash",
    stage="phash",
)


class PhashStage(FrameStage):
    """64-bit perceptual hash of the upright gray image."""

    name = "phash"
    hashed_name = "uhr.curate.stages.phash:PhashStage"
    adds = (PHASH,)

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        return {"phash": f"{phash_of(frame):016x}"}


def phash_of(frame: Frame) -> int:
    """Return the hash of a frame's upright gray image."""
    from uhr.pixels.decoders import upright
    from uhr.pixels.phash import phash

    return phash(upright(frame.gray, frame.header.orientation))
