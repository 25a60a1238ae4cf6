"""What a header is, how an image file is read in pieces, and the fault of a file that gives no image.

Below all other modules of this package, which share these types.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from uhr.base.stable_text import stable_text

if TYPE_CHECKING:
    from uhr.pixels.code_points import ColourSpace

FaultKind = Literal[
    "empty file", "not an image", "truncated", "corrupt", "too large", "unreadable", "unsupported", "changed"
]
"""Why a file gives no image. `changed`: it is not the file that was listed, or not the one whose header was
read; all others are of one version of the file.
"""


MOST_PARTS = 1_000_000
"""Segments or chunks of a file after which a walk gives up: one of tiny parts must not hold a worker."""

LARGEST_PROFILE = 16 << 20
"""Bytes of an ICC profile that is read; those of printing presses have some 3 MB. In a PNG, a few bytes may
inflate to gigabytes.
"""


class PixelFault(Exception):
    """A file that gives no image. `kind` becomes the sample's reason; `message` is for people, and the same
    on every run: clocks and addresses that a library puts into its own messages are removed.
    """

    def __init__(self, kind: FaultKind, message: str) -> None:
        self.kind: FaultKind = kind
        self.message = stable_text(message)
        super().__init__(f"{kind}: {self.message}")

    def __reduce__(self) -> tuple[type[PixelFault], tuple[FaultKind, str]]:
        # exceptions cross process borders: rebuild from the two parts
        return type(self), (self.kind, self.message)


@dataclass(frozen=True, slots=True)
class Header:
    """An image as its header describes it.

    `raw_width` and `raw_height` are the stored grid in pixels, `width` and `height` the image as
    displayed, after `orientation` (EXIF tag 0x0112, 1..8, 1 is upright; an orientation in XMP is not read).
    `mode` is the colour model of the file (L, LA, P, RGB, RGBA, CMYK, ...), `bit_depth` its bits per
    channel, None where the channels differ or the header does not say. `has_alpha` counts the colour keys of
    PNG and GIF too. `animated`: more frames are announced, which the headers of GIF and TIFF cannot.

    `has_icc`: an ICC profile describes the colours. `colour` is what other numbers of the file say of them
    (code points, chromaticities), None for sRGB. `unsupported` says why the pixels cannot be decoded to the
    right colours, and is empty where they can. `notes` are what was odd but harmless.
    """

    format: str
    raw_width: int
    raw_height: int
    mode: str
    bit_depth: int | None
    orientation: int = 1
    has_alpha: bool = False
    has_icc: bool = False
    animated: bool = False
    colour: ColourSpace | None = None
    unsupported: str = ""
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        return self.raw_height if self.orientation >= 5 else self.raw_width

    @property
    def height(self) -> int:
        return self.raw_width if self.orientation >= 5 else self.raw_height

    @property
    def pixels(self) -> int:
        return self.raw_width * self.raw_height


class FileBytes:
    """The bytes of a file, read in pieces: the first ones at once, others where a walk asks for them."""

    def __init__(self, first: bytes, size: int, handle: int | None = None) -> None:
        self.first, self.size, self._handle = first, size, handle

    def at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer where the file ends, whatever numbers a file names."""
        count = min(count, self.size - offset)
        if count <= 0:
            return b""
        if offset + count <= len(self.first) or self._handle is None:
            return self.first[offset : offset + count]
        return os.pread(self._handle, count, offset)
