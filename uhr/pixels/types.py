"""The types that all modules of this package share: a header, a file's bytes, and the fault of a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from uhr.pixels.decoder_noise import stable_text

if TYPE_CHECKING:
    from uhr.pixels.code_points import ColourSpace

FaultKind = Literal[
    "empty file",
    "not an image",
    "truncated",
    "corrupt",
    "too large",
    "unreadable",
    "unsupported",
    "changed",
    "download",
    "unavailable",
]
"""The reason why no image can be read from a file. `changed`: it is not the file that was listed, or not the
one whose header was read; `download`: its URL does not give it; `unavailable`: its host or store did not
answer, or refused, and may answer another time; all others are about one version of the file.
"""


MOST_PARTS = 1_000_000
"""Segments or chunks of a file after which a walk stops: a file of tiny parts must not block a worker."""

LARGEST_PROFILE = 16 << 20
"""Largest ICC profile in bytes that is read; those of printing presses have about 3 MB. In a PNG, a few bytes
may inflate to gigabytes.
"""


class PixelFault(Exception):
    """Raised for a file from which no image can be read.

    `kind` becomes the sample's reason. `message` is the same on every run: times and addresses in a library's
    messages are removed.
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

    `raw_width` and `raw_height` are the stored grid in pixels, `width` and `height` the image as displayed,
    after `orientation` (EXIF tag 0x0112, 1..8, 1 is upright; an orientation in XMP is not read). `mode` is
    the colour model of the file (L, LA, P, RGB, RGBA, CMYK, ...), `bit_depth` its bits per channel; None if
    the channels differ or the header does not have it. `has_alpha` is also true for the colour keys of PNG
    and GIF. `animated` is whether more frames are announced, which the headers of GIF and TIFF cannot do.

    `has_icc` is whether an ICC profile describes the colours. `colour` is their space by other numbers of the
    file (code points, chromaticities), None for sRGB. `unsupported` is the reason why the pixels cannot be
    decoded to the right colours, or empty. `notes` are irregularities that do no harm.
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
    """The bytes of a file: the first ones are in memory, others are read when they are needed.

    source: an open file, or a function that returns `count` bytes from an offset; None if `first` has all.
    """

    def __init__(
        self, first: bytes, size: int, source: int | Callable[[int, int], bytes] | None = None
    ) -> None:
        self.first, self.size, self._source = first, size, source

    def at(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset`, or fewer at the end of the file; any numbers are allowed."""
        count = min(count, self.size - offset)
        if count <= 0:
            return b""
        source = self._source
        if offset + count <= len(self.first) or source is None:
            return self.first[offset : offset + count]
        return os.pread(source, count, offset) if isinstance(source, int) else source(offset, count)
