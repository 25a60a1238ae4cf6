"""A perceptual hash: images that look alike have hashes that differ in few bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SIDE, KEPT = 32, 8
"""Side of the shrunk image and of the corner of its cosine transform that is kept, as in imagehash's `phash`.
"""


def phash(gray: np.ndarray) -> int:
    """Return the hash, 64 bits, of an upright gray image, uint8 [H, W].

    A bit says whether one of the 64 lowest coefficients of the cosine transform is above their median. The
    most significant bit is that of the constant coefficient.
    """
    import cv2
    import numpy as np

    small = cv2.resize(np.ascontiguousarray(gray), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:KEPT, :KEPT]
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
