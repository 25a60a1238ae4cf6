"""What a picture's first bytes say of it: format, size, orientation, colour model. Nothing is decoded here.

JPEG, PNG and WebP headers are walked byte by byte (some twenty microseconds a file); Pillow opens the rest,
lazily. A header vouches for nothing behind it: only a full decode (`decode.py`) proves that a file is whole.
"""

from __future__ import annotations

import os
from pathlib import Path

from uhr.pixels import header_walks, pillow_formats
from uhr.pixels.files import opened
from uhr.pixels.types import FileBytes, Header, PixelFault

FORMATS = ("JPEG", "PNG", "WEBP", *pillow_formats.FORMATS)
"""Every format that is decoded, by the names in `Header.format`."""

FIRST_BYTES = 16 * 1024
"""How much of a file is read at once; a walk that runs past it reads on where its next segment lies."""


def read_header(source: bytes | Path | str, version: str | None = None) -> Header:
    """The header of a file or of its bytes. Raises `PixelFault` and nothing else, whatever the bytes are.

    The format is decided by content, never by name. The size of the image is not judged here. With the
    `version` of a file (`uhr.base.files.file_version`), one that has another by now is a fault.
    """
    if isinstance(source, bytes):
        return _read(FileBytes(source, len(source)), source)
    with opened(source, version) as handle:
        size = os.fstat(handle).st_size
        return _read(FileBytes(os.read(handle, FIRST_BYTES), size, handle), handle)


def _read(source: FileBytes, behind: bytes | int) -> Header:
    first = source.first
    if not first:
        raise PixelFault("empty file", "the file has no bytes")
    if first.startswith(b"\xff\xd8\xff"):
        header = header_walks.jpeg(source)
    elif first.startswith(b"\x89PNG\r\n\x1a\n"):
        header = header_walks.png(source)
    elif first.startswith(b"RIFF") and first[8:12] == b"WEBP":
        header = header_walks.webp(source)
    else:
        header = pillow_formats.header(behind, first)
    if header.raw_width < 1 or header.raw_height < 1:
        raise PixelFault("corrupt", f"the header says {header.raw_width} x {header.raw_height} pixels")
    return header
