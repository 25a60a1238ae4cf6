"""What a decoder gives: the pixels of a file on its stored grid, and what is needed to show them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from uhr.pixels.colour import Conversion


@dataclass(eq=False)
class Planes:
    """What a file contains, on its stored grid of uint8: `bgr` [H, W, 3], `alpha` [H, W] where something
    shows through, `cmyk` [H, W, 4] where a profile is to convert it.

    `profile` is the ICC profile that describes the colours: the file's own, or one that equals its code
    points; None for sRGB and where a profile is ignored. `conversion` goes from it to sRGB and is None where
    nothing is to be converted. `notes` are what was odd but harmless.
    """

    bgr: np.ndarray
    alpha: np.ndarray | None = None
    cmyk: np.ndarray | None = None
    profile: bytes | None = None
    conversion: Conversion | None = None
    notes: list[str] = field(default_factory=list)
