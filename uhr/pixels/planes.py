"""The result of a decoder: the pixels of a file on its stored grid, and what is needed to display them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from uhr.pixels.colour import Conversion


@dataclass(eq=False)
class Planes:
    """The pixels of a file, uint8 on its stored grid.

    They are `bgr` [H, W, 3], `alpha` [H, W] unless all is opaque, and `cmyk` [H, W, 4] if a profile converts
    it. `profile` is the ICC profile of the colours, the file's own or one that equals its code points; None
    for sRGB, and for an ignored profile. `conversion` converts from it to sRGB; None if nothing is converted.
    `notes` are irregularities that do no harm.
    """

    bgr: np.ndarray
    alpha: np.ndarray | None = None
    cmyk: np.ndarray | None = None
    profile: bytes | None = None
    conversion: Conversion | None = None
    notes: list[str] = field(default_factory=list)
