"""A perceptual hash: images that look alike have hashes that differ in few bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from uhr.curate.frame import Frame
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column

if TYPE_CHECKING:
    import numpy as np

SIDE, KEPT = 32, 8
"""Side of the shrunk image and of the corner of its cosine transform that is kept, as in imagehash's `phash`.
"""

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

    return phash(upright(frame.gray, frame.header.orientation))


def phash(gray: np.ndarray) -> int:
    """Return the hash of a gray image, uint8 [H, W]; its most significant bit is the constant coefficient."""
    import cv2
    import numpy as np

    small = cv2.resize(np.ascontiguousarray(gray), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:KEPT, :KEPT]
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
