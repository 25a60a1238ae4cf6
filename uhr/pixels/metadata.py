"""Find which kinds of metadata a file has besides its image, by their marks; they are not read."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

from uhr.pixels.formats.tiff.directory import first_directory
from uhr.pixels.types import FileBytes

_JPEG = {(0xE1, b"Exif\0"): "EXIF", (0xE1, b"http://ns.adobe.com/xap/1.0/\0"): "XMP"}
_JPEG |= {(0xED, b"Photoshop 3.0\0"): "IPTC", (0xFE, b""): "comments"}
_PNG = {b"eXIf": "EXIF", b"tEXt": "text", b"zTXt": "text", b"iTXt": "text"}
_WEBP = {b"EXIF": "EXIF", b"XMP ": "XMP"}
_BOXES = {b"Exif": "EXIF", b"JpgTiffExif->JP2": "EXIF", b"application/rdf+xml": "XMP"}
"""Marks in AVIF and JPEG 2000, which name the content of an item or box."""

_TIFF = {34665: "EXIF", 700: "XMP", 33723: "IPTC", 270: "text", 315: "text", 33432: "text"}
"""Tags of the first directory; text is a description, an author, a copyright."""

_HEAD = 1 << 16
"""Bytes at the start of an AVIF or JPEG 2000 file in which its items are named."""


def metadata_kinds(data: bytes, format: str, known: Collection[bytes] = ()) -> list[str]:
    """Return which of EXIF, XMP, IPTC, comments, text a file has, in that order.

    `format` is one of `headers.FORMATS`. The file must have been decoded without a fault. Text of a PNG under
    the `known` keywords is ignored.
    """
    if format == "JPEG":
        found = set(_of_jpeg(data))
    elif format == "PNG":
        found = set(_of_png(data, known))
    elif format == "TIFF":
        directory = first_directory(FileBytes(data, len(data)))
        found = {name for tag, name in _TIFF.items() if tag in directory}
    elif format == "WEBP":
        found = {_WEBP[kind] for kind in _chunks_of_riff(data) if kind in _WEBP}
    elif format in ("AVIF", "JPEG2000"):
        found = {name for mark, name in _BOXES.items() if mark in data[:_HEAD]}
    else:
        found = set()
    return [name for name in ("EXIF", "XMP", "IPTC", "comments", "text") if name in found]


def _of_jpeg(data: bytes) -> Iterator[str]:
    """Yield the kinds of the segments before the first scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xDA:
            return
        length = struct.unpack_from(">H", data, at + 2)[0]
        for (kind, start), name in _JPEG.items():
            if marker == kind and data.startswith(start, at + 4):
                yield name
        at += 2 + max(length, 2)


def _of_png(data: bytes, known: Collection[bytes]) -> Iterator[str]:
    """Yield the kinds of all chunks; text chunks that contain XMP or EXIF count as those."""
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        keyword = data[at + 8 : at + 8 + min(length, 80)].partition(b"\0")[0]
        if kind == b"eXIf" or (kind in _PNG and keyword not in known):
            named = {b"XML:com.adobe.xmp": "XMP", b"Raw profile type exif": "EXIF"}
            yield named.get(keyword, _PNG[kind])
        at += 12 + length


def _chunks_of_riff(data: bytes) -> Iterator[bytes]:
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind
        at += 8 + length + length % 2
