"""Read an image's header: format, size, depth, orientation, colours. Nothing is decoded here.

Headers are walked byte by byte, in about twenty microseconds for a JPEG. Only a full decode (`decode.py`)
proves that a file is intact.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from uhr.pixels.files import open_version
from uhr.pixels.formats import bmp, gif, header_walks, ico, jpeg2000, netpbm, qoi, signatures
from uhr.pixels.formats.isobmff import avif
from uhr.pixels.formats.tiff import header as tiff
from uhr.pixels.types import FileBytes, Header, PixelFault

FIRST_BYTES = 16 * 1024
"""Bytes of a file that are read at once; a walk beyond them reads at the offset of its next segment."""

_ENDS = ((b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"), (b"\xff\xd8\xff", b"\xff\xd9"))
"""First and last bytes of a PNG and of a JPEG."""

_WALKS: dict[str, Callable[[FileBytes], Header]] = {
    "JPEG": header_walks.jpeg,
    "PNG": header_walks.png,
    "WEBP": header_walks.webp,
    "AVIF": avif.header,
    "BMP": bmp.header,
    "GIF": gif.header,
    "ICO": ico.header,
    "JPEG2000": jpeg2000.header,
    "PPM": netpbm.header,
    "QOI": qoi.header,
    "TIFF": tiff.header,
}

FORMATS = tuple(_WALKS)
"""Every format that is decoded, by the names in `Header.format`."""


def read_header(source: bytes | Path | str, version: str | None = None) -> Header:
    """Read the header of a file or of its bytes. Raises `PixelFault` and nothing else, whatever the bytes
    are.

    The format is decided by content, never by name. Limits on the image's size are not checked here. It is a
    fault if a file no longer has the given `version` (`uhr.base.files.file_version`).
    """
    if isinstance(source, bytes):
        return header_of(FileBytes(source, len(source)))
    with open_version(source, version) as handle:
        size = os.fstat(handle).st_size
        return header_of(FileBytes(os.read(handle, FIRST_BYTES), size, handle))


def lacks_end(path: Path | str) -> bool:
    """Whether a PNG or JPEG does not end with the bytes that end its image: it is cut off, or more follows.
    False for other formats. Raises `PixelFault` for a file that cannot be read.
    """
    with open_version(path) as handle:
        first = os.read(handle, 8)
        for start, end in _ENDS:
            if first.startswith(start):
                offset = max(0, os.fstat(handle).st_size - len(end))
                return os.pread(handle, len(end), offset) != end
    return False


def header_of(source: FileBytes) -> Header:
    """Read the header of bytes that may be anywhere. Raises PixelFault, as `read_header` does."""
    if not source.first:
        raise PixelFault("empty file", "the file has no bytes")
    header = _WALKS[signatures.format_of(source.first)](source)
    if header.raw_width < 1 or header.raw_height < 1:
        raise PixelFault("corrupt", f"the header says {header.raw_width} x {header.raw_height} pixels")
    return header
